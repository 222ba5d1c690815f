"""Saved heads: bundles on disk, prediction, parity and export."""
