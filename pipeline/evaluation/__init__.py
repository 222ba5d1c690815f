"""How good each head is: splits, metrics, the comparison and its table."""
