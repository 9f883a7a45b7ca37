"""A model as it stands in memory: the map of its neurons, its experts, the hooks that see and edit them, loading."""
