"""Modes behind OpenAI-compatible servers."""
