"""Exact unlearning by sequence-aware sharded, sliced training (S3T)."""
