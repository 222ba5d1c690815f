"""Find, hash and decode image files."""
