"""The page of ``python -m pipeline.app``: it calls functions that a notebook can call."""
