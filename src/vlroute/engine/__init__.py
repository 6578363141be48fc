"""How a request is answered: engines, their settings and their caches. Knows nothing of the decision."""

__all__: list[str] = []
