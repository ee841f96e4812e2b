"""Compiled programs that are kept between runs, so that a second start is a fast one.

They save time only: what is broken, or of another processor or version, costs a compilation.
"""

import hashlib
import importlib.metadata
import os
import platform
import sys
import warnings
from pathlib import Path

_MOST = 2**30  # bytes; above it the programs that were not used for the longest time go


def folder(name: str) -> Path | None:
    """Where the programs of this version, processor and these flags are; None without a home."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else [platform.processor()]
    processor = sorted({line for line in lines if line.startswith(("model name", "flags"))})
    facts = [importlib.metadata.version("jaxlib"), os.environ.get("XLA_FLAGS", ""), *processor]
    digest = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
    try:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        return None
    return Path(cache) / "jaxunlearn" / name / digest


def keep(name: str = "xla") -> None:
    """Lets JAX, which is not imported yet, read and keep them; what the user has set stays."""
    # a broken entry, also of a folder of the user's, is compiled again, which needs no word
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
    place = folder(name)
    if place is None or "jax" in sys.modules:
        return
    try:
        place.mkdir(parents=True, exist_ok=True)
        _trim(place.parent)
    except OSError:  # nothing is kept on a full disk, or where nothing can be written
        return
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(place))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def _trim(place: Path) -> None:
    files = [(file, file.stat()) for file in place.rglob("*") if file.is_file()]
    excess = sum(of.st_size for _, of in files) - _MOST
    for file, of in sorted(files, key=lambda entry: max(entry[1].st_atime, entry[1].st_mtime)):
        if excess <= 0:
            return
        file.unlink(missing_ok=True)
        excess -= of.st_size
