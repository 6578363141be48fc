"""Runnable scripts: make what `models/` holds, retrain the router, measure."""
