"""What a notebook calls: the functions behind the commands."""

from pipeline.cache.file import FeatureTable, read_table as load_features

__all__ = ["FeatureTable", "load_features"]
