"""A small simulator of replicas under load; see docs/scaling.md."""
