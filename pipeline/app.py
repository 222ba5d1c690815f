"""``python -m pipeline.app``: a page on this machine to try, look, mend and compare."""
