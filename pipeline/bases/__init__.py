"""Frozen convolutional bases: the table of bases, their weights, and how they are built."""
