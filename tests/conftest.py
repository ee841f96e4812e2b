"""What all tests share; what JAX reads from the environment must be set before it is imported."""

import os

from jaxunlearn.cli import programs

# Most of the suite's time is LLVM's, for programs that run once. `XLA_FLAGS= pytest` compiles as
# users do; the tests of tests/mesh always do, since equal bits are what is promised to users.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1")
programs.keep("tests")

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
            "adapted_streams",
        )
    ),
]
