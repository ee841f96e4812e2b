"""Device meshes, sharding rules by pattern, and the start of a run on many hosts."""

import os
import re

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxunlearn.core import tree
from jaxunlearn.core.tree import Tree

_MOST_CPU_DEVICES = 256  # host devices share the cores; thousands only exhaust the memory


def start(cpu_devices: int | None = None, **distributed: object) -> None:
    """Prepares the process's devices; call it before anything else touches JAX.

    Args:
        cpu_devices: how many devices the CPU shows; XLA's convolutions run on one thread each, so
            one device per core uses all cores. Ignored on an accelerator.
        **distributed: arguments of `jax.distributed.initialize`; with any of them (on a TPU pod
            slice `coordinator_address=None` is enough) the processes of the run find each other.

    Raises:
        ValueError: `cpu_devices` outside 1 to 256, or JAX already runs with another number.
    """
    if cpu_devices is not None:
        if not 1 <= cpu_devices <= _MOST_CPU_DEVICES:
            raise ValueError(f"devices is {cpu_devices}; 1 to {_MOST_CPU_DEVICES} are allowed")
        try:
            jax.config.update("jax_num_cpu_devices", cpu_devices)
        except RuntimeError as error:
            if jax.default_backend() == "cpu" and jax.local_device_count() != cpu_devices:
                raise ValueError(
                    f"devices is {cpu_devices}, but JAX already runs with "
                    f"{jax.local_device_count()}; start() must come first"
                ) from error
    if distributed:
        jax.distributed.initialize(**distributed)  # type: ignore[arg-type]


def cores() -> int:
    """CPU cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def make(axes: dict[str, int] | None = None) -> Mesh:
    """A mesh over the first devices, XLA deciding layouts inside (`AxisType.Auto`).

    Args:
        axes: name and size of each axis, such as `{"models": 4, "data": 2}`; by default one axis
            `models` over all devices.

    Raises:
        ValueError: a size below 1, or more devices asked for than there are.
    """
    axes = axes or {"models": jax.device_count()}
    wanted = int(np.prod(list(axes.values())))
    if min(axes.values()) < 1 or wanted > jax.device_count():
        raise ValueError(
            f"axes is {axes}, which needs {wanted} devices; there are {jax.device_count()}"
        )
    return jax.make_mesh(
        tuple(axes.values()),
        tuple(axes),
        axis_types=(AxisType.Auto,) * len(axes),
        devices=jax.devices()[:wanted],
    )


def shardings(params: Tree, mesh: Mesh, rules: dict[str, PartitionSpec]) -> Tree:
    """A `NamedSharding` for every leaf: the first rule whose pattern matches its whole name.

    Args:
        params: parameters, or anything with named leaves.
        mesh: the mesh.
        rules: pattern to partition spec, e.g. `{".*/kernel": P(None, "model"), ".*": P()}`.

    Raises:
        ValueError: a leaf that no rule matches.
    """

    def choose(name: str) -> NamedSharding:
        for pattern, spec in rules.items():
            if re.fullmatch(pattern, name):
                return NamedSharding(mesh, spec)
        raise ValueError(f"rules: none of {list(rules)} matches {name!r}; end with '.*'")

    names = list(tree.named(params))
    return jax.tree.unflatten(jax.tree.structure(params), [choose(name) for name in names])
