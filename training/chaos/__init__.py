"""Attacks and faults: what breaks a server or its files, as functions that return figures."""
