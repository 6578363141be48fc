"""Caches of vision features and of keys and values."""
