"""Real data, which is no part of the repository."""

import os

import pytest


def folder_of(variable):
    """Skips a test whose data nobody has put there, as on a machine without a network."""
    if variable not in os.environ:
        pytest.skip(f"{variable} is not set")
