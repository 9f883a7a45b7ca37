"""Many branches attend to one shared prefix, and each to itself or its own tree, without copies: see README.md."""
