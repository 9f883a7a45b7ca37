"""An attribution that takes long: on disk, in several processes, and the record of where it comes from."""
