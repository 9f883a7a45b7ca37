"""Many branches attend to one shared prefix and each to itself, without a copy of the prefix: see README.md."""
