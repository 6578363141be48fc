"""Public client libraries against a running server."""
