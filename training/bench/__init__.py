"""Measurements that are too slow for the tests; their tables are committed."""
