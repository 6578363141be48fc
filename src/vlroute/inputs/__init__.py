"""What a request brings: messages, pictures, videos, and their limits."""
