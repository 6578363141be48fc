"""The server over several replicas on Ray Serve."""
