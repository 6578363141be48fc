"""The server over several replicas on Ray Serve."""

__all__: list[str] = []
