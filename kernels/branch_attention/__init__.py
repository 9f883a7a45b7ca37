"""Many branches attend to one shared prefix and each to itself or its own tree, without a copy of the prefix: see README.md."""
