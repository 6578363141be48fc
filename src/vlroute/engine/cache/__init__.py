"""Caches of vision features and of keys and values."""

__all__: list[str] = []
