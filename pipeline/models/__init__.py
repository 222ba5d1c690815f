"""Trained heads that leave the run: bundles on disk, predicting with them, parity."""
