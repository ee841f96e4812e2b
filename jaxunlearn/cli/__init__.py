"""The command line."""

from jaxunlearn.cli.app import main

__all__ = ["main"]
