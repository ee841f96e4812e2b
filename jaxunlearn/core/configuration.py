"""What of a process's configuration decides bits: the same is needed to go on with a run."""

import contextlib
import os
from pathlib import Path
from typing import Any

import jax

from jaxunlearn.core import records

# Random numbers, types, roundings of products and derivatives, and what the compiler may do.
_OPTIONS = (
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_random_seed_offset",
    "jax_high_dynamic_range_gumbel",
    "jax_enable_x64",
    "jax_explicit_x64_dtypes",
    "jax_default_matmul_precision",
    "jax_allow_f16_reductions",
    "jax_softmax_custom_jvp",
    "jax_use_direct_linearize",
    "jax_disable_jit",
    "jax_disable_most_optimizations",
    "jax_optimization_level",
    "jax_exec_time_optimization_effort",
    "jax_memory_fitting_effort",
    "jax_memory_fitting_level",
    "jax_compiler_enable_remat_pass",
)
_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
# The number of devices decides no bits, and these only look on.
_HARMLESS = ("xla_force_host_platform_device_count", "xla_dump_", "xla_hlo_profile")


def current() -> dict[str, Any]:
    """What decides bits in this process, JSON-like: JAX's options, and flags of compilers."""
    options = {name: _plain(getattr(jax.config, name, None)) for name in _OPTIONS}
    tf32 = {"NVIDIA_TF32_OVERRIDE": os.environ.get("NVIDIA_TF32_OVERRIDE", "")}
    return options | {name: _flags(os.environ.get(name, "")) for name in _FLAGS} | tf32


def check(before: Any, place: str) -> None:
    """Raises a ValueError that names what differs from the configuration of a run.

    Args:
        before: `current()` as it was recorded; None in what an earlier version wrote.
        place: place of the record, for the message.
    """
    if before is not None:
        records.check_same({"configuration": before}, {"configuration": current()}, place)


def _plain(value: Any) -> Any:
    return value if value is None or type(value) in (bool, int, float, str) else str(value)


def _flags(written: str) -> dict[str, str]:
    """Flags by name, the last of several; without what decides no bits."""
    if not written.lstrip().startswith("-"):  # as XLA takes it, the name of a file that holds them
        with contextlib.suppress(OSError, ValueError):
            written = Path(written).read_text()
    pairs = (flag.lstrip("-").partition("=") for flag in written.split())
    flags = {name: value for name, _, value in pairs if not name.startswith(_HARMLESS)}
    return dict(sorted(flags.items()))
