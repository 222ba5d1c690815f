"""Look at a run, correct its labels, train again, and compare: what the page shows."""
