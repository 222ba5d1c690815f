"""Classifiers on cached features, one short file a family; see `pipeline.heads.registry`."""
