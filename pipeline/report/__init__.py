"""The results of a comparison on disk: tables, documents, plots."""
