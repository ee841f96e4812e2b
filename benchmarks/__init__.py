"""Benchmarks beside peers; see `benchmarks.run`."""
