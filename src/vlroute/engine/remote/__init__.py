"""Modes behind OpenAI-compatible servers."""

__all__: list[str] = []
