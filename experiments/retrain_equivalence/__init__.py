"""Retrain equivalence and the order of stages."""
