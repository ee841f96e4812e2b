"""Test-time adaptation on corrupted images."""
