"""Who else may call: the HTTP server and the web page."""
