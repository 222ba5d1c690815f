"""Caches of features: HDF5 files that survive crashes, with rows found by image content."""
