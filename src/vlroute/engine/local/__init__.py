"""Both modes of a model in this process."""
