"""Branches attend to one shared prefix and to themselves, or to their own tree, without a copy of it: see README.md."""
