"""Exact unlearning: sharded, sliced training in several orders (S3T), and SISA."""
