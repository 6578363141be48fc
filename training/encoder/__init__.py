"""How `models/encoder` was made."""
