"""Streams that take any text: what is printed comes from files, too, and readers may go away.

Nothing here needs JAX.
"""

import contextlib
import os
import sys
from collections.abc import Callable
from typing import IO, Any

# Control characters, C1's too, and marks that turn the direction of a line.
_HARMFUL = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"}
_HARMFUL |= dict.fromkeys((*range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)), "�")


def printable(text: str) -> str:
    """A text with signs in place of what a terminal would obey."""
    return text.translate(_HARMFUL)


def tell(message: str) -> None:
    """Says something beside the results; texts from files in it are made harmless."""
    print(printable(message), file=Stream(sys.stderr))  # type: ignore[arg-type]


class Stream:
    """A stream that takes every text, whatever its encoding, and outlives its reader.

    What cannot be written, as on a full disk, is an OSError that names the stream; of standard
    error, which has no results, it is lost.
    """

    def __init__(self, stream: IO[str]):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> None:
        """Writes a text; what cannot be encoded is written as an escape."""
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        whole = text.encode(encoding, "backslashreplace").decode(encoding)
        self._while_open(lambda: self._stream.write(whole))

    def flush(self) -> None:
        """Empties the buffer."""
        self._while_open(self._stream.flush)

    def _while_open(self, act: Callable[[], Any]) -> None:
        try:
            act()
        except OSError as error:  # from now on all goes nowhere, Python's own last flush included
            with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())
            if self._stream is not sys.stderr and not isinstance(error, BrokenPipeError):
                error.filename = getattr(self._stream, "name", "the output")
                raise
