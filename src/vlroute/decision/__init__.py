"""The decision which mode answers, from text, captions and numbers. Imports neither torch nor transformers."""

__all__: list[str] = []
