"""The command line: one verb per job. Parses, calls, prints."""

import dataclasses
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import tyro

USAGE, FAILED, INTERRUPTED = 2, 1, 130  # exit codes


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    verb = tyro.extras.SubcommandApp()
    verb.command(name="unlearn")(unlearn)
    return verb.cli(args=argv, prog="jaxunlearn", description=__doc__) or 0


