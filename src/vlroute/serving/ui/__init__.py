"""The web page."""

__all__: list[str] = []
