"""Serve a web page on this machine, and elements of it: what `pipeline.app` is built from."""
