"""The lightweight CNN (arXiv 2501.15547)."""
