"""What a request brings: messages, pictures, videos, and their limits."""

__all__: list[str] = []
