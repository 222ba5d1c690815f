"""Heads: scikit-learn classifiers and a Keras model that learn from cached features."""
