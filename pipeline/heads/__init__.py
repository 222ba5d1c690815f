"""Heads: scikit-learn classifiers and a Keras model, trained on cached features."""
