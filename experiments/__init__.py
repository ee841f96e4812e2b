"""One folder per experiment: run.py with its card, and its results."""
