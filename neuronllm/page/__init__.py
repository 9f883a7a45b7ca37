"""A comparison as one page that works from disk: no server, no network; and its parts for a notebook.

Knows nothing of models: it reads the JSON of a comparison (`comparison.json`, `timings.json`), and whoever has such
facts can have a part of the page made of them.
"""
