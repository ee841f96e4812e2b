"""Device meshes, sharding rules by pattern, and runs of several processes.

Of several processes each computes its own lanes and the first one writes the files, which all of
them read: they share the output folder. What one process does alone (it dies, its disk is full, it
is interrupted) ends the others at their next exchange of results, and at the latest when it has
shown no sign of life for `_DEAD_AFTER` seconds; JAX then aborts them.
"""

import contextlib
import os
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxunlearn.core import tree
from jaxunlearn.core.tree import Tree

_MOST_CPU_DEVICES = 256  # host devices share the cores; thousands only exhaust the memory
_DEAD_AFTER = 30  # seconds; by default JAX would wait 100, and 300 at the end of a run


def start(cpu_devices: int | None = None, **distributed: object) -> None:
    """Prepares the process's devices; call it before anything else touches JAX.

    Args:
        cpu_devices: how many devices the CPU shows; XLA's convolutions run on one thread each, so
            one device per core uses all cores. Ignored on an accelerator.
        **distributed: arguments of `jax.distributed.initialize`; with any of them (on a TPU pod
            slice `coordinator_address=None` is enough) the processes of the run find each other.

    Raises:
        ValueError: `cpu_devices` outside 1 to 256, or JAX already runs with another number, or the
            processes do not find each other.
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
        timeouts = ("heartbeat_timeout_seconds", "shutdown_timeout_seconds")
        patience = dict.fromkeys(timeouts, _DEAD_AFTER)
        # That service would take a SIGTERM for a notice, and the process would not end.
        jax.config.update("jax_enable_preemption_service", False)
        try:
            jax.distributed.initialize(**patience | distributed)  # type: ignore[arg-type]
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"the run's processes do not find each other: {error}") from error


def cores() -> int:
    """CPU cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def is_first() -> bool:
    """Whether this is the process that writes files and speaks."""
    return jax.process_index() == 0


def place(arrays: Tree, sharding: NamedSharding) -> Tree:
    """Puts arrays that every process has onto the devices of all of them."""
    if jax.process_count() == 1:
        return jax.device_put(arrays, sharding)

    # `device_put` would have the processes compare them, leaf by leaf.
    def put(leaf: Any) -> jax.Array:
        array = np.asarray(jnp.asarray(leaf))
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put, arrays)


def gather(results: Tree) -> Tree:
    """Numpy arrays of what all processes of the run hold, in each of them; see `exchange`."""
    if jax.process_count() == 1:
        return jax.device_get(results)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(results, tiled=True)


@contextlib.contextmanager
def exchange():
    """A block in which this process waits for the others.

    Raises:
        ConnectionError: another process has died.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:  # which of them depends on where JAX waits
        if jax.process_count() == 1:
            raise
        reason = str(error).partition("\n")[0]
        raise ConnectionError(f"a process of the run died ({reason})") from error


@contextlib.contextmanager
def together():
    """All processes leave this block, or with an error in one of them, none.

    What the first one wrote inside, the others can read afterwards.

    Raises:
        ValueError: in the processes without an error of their own.
    """
    if jax.process_count() == 1:
        yield
        return
    try:
        yield
    except Exception:
        with exchange():
            gather(np.array([True]))
        raise
    with exchange():
        failed = np.flatnonzero(gather(np.array([False])))
    if len(failed):
        raise ValueError(f"process {failed[0]} of the run failed; its message says why")


def leave(code: int) -> int:
    """Ends this process at once if it is one of several, so that the others notice.

    An ordinary exit would wait for them, while they wait for results of this one.

    Args:
        code: the exit code; returned where there are no others.
    """
    if jax.process_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def make(axes: dict[str, int] | None = None) -> Mesh:
    """A mesh over the first devices of every process, XLA deciding layouts (`AxisType.Auto`).

    Args:
        axes: name and size of each axis, such as `{"models": 4, "data": 2}`; by default one axis
            `models` over all devices.

    Raises:
        ValueError: a size below 1, or devices that there are not, or not alike in each process.
    """
    axes = axes or {"models": jax.device_count()}
    wanted = int(np.prod(list(axes.values())))
    if min(axes.values()) < 1 or wanted > jax.device_count():
        raise ValueError(
            f"axes is {axes}, which needs {wanted} devices; there are {jax.device_count()}"
        )
    sizes, names, types = tuple(axes.values()), tuple(axes), (AxisType.Auto,) * len(axes)
    return jax.make_mesh(sizes, names, axis_types=types, devices=_first_devices(wanted))


def _first_devices(wanted: int) -> list[Any]:
    """As many devices of each process: all processes take part in everything."""
    if wanted == jax.device_count():
        return jax.devices()
    of_process: dict[int, list[Any]] = {}
    for device in jax.devices():
        of_process.setdefault(device.process_index, []).append(device)
    each, rest = divmod(wanted, len(of_process))
    if rest or each > min(map(len, of_process.values())):
        raise ValueError(
            f"{wanted} devices are asked for; {len(of_process)} processes with "
            f"{[len(devices) for devices in of_process.values()]} devices need as many of each"
        )
    return [device for devices in of_process.values() for device in devices[:each]]


def batch_shards() -> int:
    """How many devices share a batch in the program that is being traced."""
    around = jax.sharding.get_abstract_mesh()
    return around.shape["data"] if "data" in around.auto_axes else 1


def split_batch(batch: Tree) -> Tree:
    """Splits a batch over the axis `data` of the mesh around it, if that has one.

    Called while a program is traced. Only the layout changes, no number is lost or made: XLA adds
    up what the devices of the axis compute, so that means, BatchNorm's too, are over the whole
    batch. Leaves whose leading axis the size of the mesh axis does not divide stay whole.
    """
    n_shards, around = batch_shards(), jax.sharding.get_abstract_mesh()
    if n_shards == 1:
        return batch

    def split(leaf: jax.Array) -> jax.Array:
        if leaf.ndim == 0 or leaf.shape[0] % n_shards:
            return leaf
        spec = PartitionSpec("data", *(PartitionSpec.UNCONSTRAINED,) * (leaf.ndim - 1))
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(around, spec))

    return jax.tree.map(split, batch)


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
