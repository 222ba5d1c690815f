"""A comparison on disk: tables, documents, plots."""
