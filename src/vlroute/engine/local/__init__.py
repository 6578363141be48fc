"""Both modes of a model in this process."""

__all__: list[str] = []
