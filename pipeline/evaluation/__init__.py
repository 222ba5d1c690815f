"""Compare heads: splits, fits, metrics, the results table and the audit of the data."""
