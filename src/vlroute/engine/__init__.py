"""HOW is a request answered? Knows checkpoints and caches; never why a mode was chosen."""
