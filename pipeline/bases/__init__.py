"""Frozen convolutional bases: which there are, their weights, and building them."""
