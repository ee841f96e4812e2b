"""What all tests share; what JAX reads from the environment must be set before it is imported."""

import hashlib
import importlib.metadata
import os
import platform
from pathlib import Path


def cache_folder() -> Path:
    """Where compiled programs are kept between runs: by version, processor and flags.

    They save time only: a broken entry costs a compilation, and nothing but the tests reads them.
    """
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else [platform.processor()]
    processor = sorted({line for line in lines if line.startswith(("model name", "flags"))})
    facts = [importlib.metadata.version("jaxlib"), os.environ.get("XLA_FLAGS", ""), *processor]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (
        home / "jaxunlearn" / "tests" / hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
    )


# Most of the suite's time is LLVM's, for programs that run once. `XLA_FLAGS= pytest` compiles as
# users do; the tests of tests/mesh always do, since equal bits are what is promised to users.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_folder()))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

from jaxunlearn import nn  # noqa: E402
from jaxunlearn.core import keys  # noqa: E402

settings.register_profile("default", deadline=None, max_examples=12, derandomize=True)
settings.load_profile("default")


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Drops a module's programs after it: a process may map some 65,000 regions of memory."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def small():
    """A tiny network, parameters, and a source of batches that it can learn."""
    model = nn.mlp(4, (8,), 3)
    params, stats = model.init(jax.random.key(0))
    return model, params, stats, toy_batch


def toy_batch(key, step):
    x = jax.random.normal(keys.fold(key, step), (16, 4))
    return {"x": x, "y": (x[:, 0] > 0).astype(jnp.int32) + (x[:, 1] > 0.5)}


# Pytest loads the first three all the same; as modules with doctests they would bear one name. The
# others are scripts that test_mesh.py runs in processes of their own.
collect_ignore = [
    "conftest.py",
    "cli/conftest.py",
    "data/conftest.py",
    *(
        f"mesh/{name}.py"
        for name in (
            "eight_devices",
            "two_processes",
            "shared_batches",
            "language_steps",
            "exact_stages",
        )
    ),
]
