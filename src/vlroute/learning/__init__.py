"""How the router gets better, offline. Nothing here runs while requests are answered."""
