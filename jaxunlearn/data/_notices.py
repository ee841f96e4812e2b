"""What a data set's reader has to say beside its arrays."""

import sys


def notice(text: str) -> None:
    """A line on stderr."""
    print(f"jaxunlearn: {text}", file=sys.stderr, flush=True)
