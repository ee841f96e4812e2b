"""What the benchmarks compare with, written for it."""
