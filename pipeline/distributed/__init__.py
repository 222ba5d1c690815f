"""Extraction by many processes: on one disk, in a shared folder, or on a Ray cluster."""
