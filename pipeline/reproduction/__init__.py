"""The figures of docs/RESULTS.md: the commands that give them, and the page made of them."""
