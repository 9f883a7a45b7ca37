"""The comparison of a paper on a model and tasks of one's own: every method, every edit, in one place."""
