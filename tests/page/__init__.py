"""A real browser for the web page."""
