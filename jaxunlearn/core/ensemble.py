"""Steps over models: one function of one model, run for many, in lanes of a fixed width.

A lane is W models computed together; every compiled call runs one lane per device of the mesh. The
program of a lane does not depend on the number of lanes or devices, so neither do a model's bits:
one device or eight, interrupted or not. They do depend on W, which belongs into a run's settings.
"""

import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxunlearn.core import checks, tree
from jaxunlearn.core import mesh as meshes
from jaxunlearn.core.checkpoint import BlockStore
from jaxunlearn.core.tree import Tree

Mode = Literal["vmap", "map"]


class Sink(Protocol):
    """Where finished lanes go by number, instead of being returned."""

    def __contains__(self, number: int, /) -> bool:
        """Whether a lane is there already."""
        ...

    def write(self, number: int, block: Tree, /) -> None:
        """Takes a finished lane; lanes come in order."""
        ...


def pick_mode(convolutional: bool) -> Mode:
    """The faster way to compute a lane on this backend.

    On a CPU a network of convolutions is bound by its activations, which fit the cache one model at
    a time (measured on a 2-core CPU: "map" 1.7x faster); everything else gains from batching.
    """
    return "map" if convolutional and jax.default_backend() == "cpu" else "vmap"


@functools.lru_cache(maxsize=64)  # the same function is the same program, compiled once
def lanes(fn: Callable[[Any, Any], Tree], mesh: Mesh, mode: Mode = "vmap") -> "Program":
    """Compiles `fn(shared, member) -> result` for one lane per device.

    Args:
        fn: a pure function of one model.
        mesh: a mesh with an axis `models`; `shared` is replicated on it. Devices along a second
            axis `data` share a lane: `core.loop` splits the batch of every step over them.
        mode: how the members of a lane are computed: together ("vmap"), or one after the other
            ("map"; no gain from batching, the least memory).

    Returns:
        A program `(shared, members[D, W, ...]) -> results[D, W, ...]`, D the size of the axis.
    """
    checks.one_of("mode", mode, ("vmap", "map"))

    def one_lane(shared: Any, members: Any) -> Tree:
        members = _unpack_keys(tree.take(members, 0))
        if mode == "vmap":
            results = jax.vmap(fn, in_axes=(None, 0))(shared, members)
        else:
            results = jax.lax.map(functools.partial(fn, shared), members)
        return jax.tree.map(lambda x: x[None], results)

    spec = PartitionSpec("models")
    return Program(
        # Loop carries start replicated and end varying; each device minds its own models.
        jax.shard_map(
            one_lane,
            mesh=mesh,
            in_specs=(PartitionSpec(), spec),
            out_specs=spec,
            axis_names={"models"},
            check_vma=False,
        ),
        alike=mesh.size == mesh.shape["models"],
    )


_MAKING = threading.Lock()


def _shared_lanes(fn: Callable[[Any, Any], Tree], mesh: Mesh, mode: Mode) -> "Program":
    """`lanes`, of which threads that ask at once get the same one."""
    with _MAKING:
        return lanes(fn, mesh, mode)


# XLA cleans up a program for several devices before it simplifies it, but not one for a single
# device: written-out layers then come out of the simplifier in other forms, with other roundings.
_ALIKE = {"xla_disable_hlo_passes": "spmd-cleanup"}


class Program:
    """A jitted function whose compilation is a call of its own, so that it can be timed.

    With `alike` its bits on a CPU are those of the same function for another number of devices.
    Threads may share it: each program is compiled once, and who comes later waits.
    """

    def __init__(self, function: Callable, *, alike: bool):
        on_cpu = jax.default_backend() == "cpu"
        self._jitted = jax.jit(function, compiler_options=_ALIKE if alike and on_cpu else None)
        self._compiled: dict[Any, Future[Callable]] = {}
        self._lock = threading.Lock()

    def compiled(self, *args: Any) -> Callable:
        """The executable for arguments of these shapes; compiles at most once for each."""
        leaves, structure = jax.tree.flatten(args)
        signature = (structure, tuple((x.shape, x.dtype, x.sharding) for x in leaves))
        with self._lock:
            is_mine = signature not in self._compiled
            program = self._compiled.setdefault(signature, Future())
        if is_mine:
            try:
                program.set_result(self._jitted.lower(*args).compile())
            except BaseException as error:
                with self._lock:  # an interruption is no reason to fail the next time
                    del self._compiled[signature]
                program.set_exception(error)
        return program.result()


def run(
    fn: Callable[[Any, Any], Tree],
    shared: Any,
    members: Any,
    *,
    width: int,
    mode: Mode = "vmap",
    mesh: Mesh | None = None,
    store: BlockStore | None = None,
    sink: Sink | None = None,
    check: Callable[[Tree, int], None] | None = None,
    callback: Callable[[int], None] | None = None,
) -> Tree:
    """Runs `fn(shared, member)` for every member, any number of them on any mesh.

    Args:
        fn: a pure function of one model that returns arrays in dicts, NamedTuples, dataclasses.
        shared: what all members read; stored once per device, but for arrays that are laid over
            `mesh` already (a large network split over a further axis): they stay as they are.
        members: pytree with a leading axis of N members (keys, initial parameters, index tables).
        width: models per lane, W; the last lane is padded and the padding dropped.
        mode: see `lanes`.
        mesh: by default one device.
        store: finished lanes are written here, and those already there are not computed again. Of
            several processes the first one writes; all of them read the folder at the start.
        sink: in place of a store, for results that do not fit the memory: they are not returned.
        check: `check(results, first)` sees each lane (leading axis its members, `first` the number
            of the first one) before it is stored, and may raise.
        callback: called with the number of members finished: at the start, when the program is
            compiled (if a lane is missing), and after each call of it.

    Returns:
        Nested dict of the results of all members, NumPy arrays by name, leading axis N; what holds
        no array (an empty dict) is left out. Empty where a sink takes them.
    """
    n_members = _n_members(members)
    _check(fn, mode, mesh, store, sink, {"check": check, "callback": callback})
    mesh, place = mesh or meshes.make({"models": 1}), store if sink is None else sink
    lane_numbers = range(-(-n_members // checks.whole("width", width)))
    there = [i for i in lane_numbers if place is not None and i in place]
    finished = {i: store.read(i) for i in there} if store is not None else {}
    sizes = [min(width, n_members - i * width) for i in lane_numbers]
    done, report = sum(sizes[i] for i in there), callback or (lambda done: None)
    report(done)
    groups = _groups([i for i in lane_numbers if i not in there], mesh.shape["models"])
    calls = _calls(fn, shared, members, groups, width, mode, mesh, functools.partial(report, done))
    for group, results in calls:
        for row, i in enumerate(dict.fromkeys(group)):
            lane = tree.nested(tree.named(tree.take(results, (row, slice(sizes[i])))))
            if check is not None:
                check(lane, i * width)
            if place is not None and meshes.is_first():
                place.write(i, lane)
            if sink is None:
                finished[i] = lane
            done += sizes[i]
        report(done)
    blocks = [finished[i] for i in lane_numbers if sink is None]
    return jax.tree.map(lambda *rows: np.concatenate(rows), *blocks) if blocks else {}


def _check(fn: Any, mode: str, mesh: Any, store: Any, sink: Any, functions: dict[str, Any]) -> None:
    """Raises a ValueError for arguments of `run` that cannot be meant."""
    checks.one_of("mode", mode, ("vmap", "map"))
    if not callable(fn):
        raise ValueError(f"fn is {fn!r}; a function (shared, member) -> results is needed")
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise ValueError(f"{name} is {function!r}; a function is needed")
    if mesh is not None and not isinstance(mesh, Mesh):
        raise ValueError(f"mesh is {mesh!r}; a mesh is needed")
    if mesh is not None and "models" not in mesh.shape:
        raise ValueError(f"mesh has axes {', '.join(mesh.shape)}; one named models is needed")
    if store is not None and sink is not None:
        raise ValueError("store and sink are given; one of them is needed")
    for name, place, methods in (("store", store, ("read", "write")), ("sink", sink, ("write",))):
        if place is not None and not all(hasattr(place, m) for m in (*methods, "__contains__")):
            raise ValueError(f"{name} is {place!r}; something with {', '.join(methods)} is needed")


def compile_ahead(
    fn: Callable[[Any, Any], Tree],
    shared: Any,
    members: Any,
    *,
    width: int,
    mode: Mode = "vmap",
    mesh: Mesh,
) -> None:
    """Compiles the program that `run` needs for such arguments, for instance in another thread.

    Arguments are those of `run`; the values of `members` do not matter.
    """
    members = jax.tree.map(np.asarray, _pack_keys(members))
    inputs = _placed_lanes(members, [0] * mesh.shape["models"], width, mesh)
    _shared_lanes(fn, mesh, mode).compiled(placed(shared, mesh), inputs)


def _n_members(members: Any) -> int:
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(members)]
    sizes = {shape[0] for shape in shapes if shape}
    if len(sizes) != 1 or 0 in sizes or () in shapes:
        raise ValueError(
            f"members have shapes {shapes}; all need one leading axis of at least 1, the members"
        )
    return sizes.pop()


def _calls(
    fn: Callable[[Any, Any], Tree],
    shared: Any,
    members: Any,
    groups: list[list[int]],
    width: int,
    mode: Mode,
    mesh: Mesh,
    compiled: Callable[[], None],
) -> Iterator[tuple[list[int], Tree]]:
    """The results of each group of lanes, [lanes, width, ...]; tells when the program is there."""
    shared, members = placed(shared, mesh), jax.tree.map(np.asarray, _pack_keys(members))
    for number, group in enumerate(groups):
        inputs = _placed_lanes(members, group, width, mesh)
        program = _shared_lanes(fn, mesh, mode).compiled(shared, inputs)
        if number == 0:
            compiled()
        with meshes.exchange():
            results = meshes.gather(program(shared, inputs))
        yield group, results


def placed(shared: Any, mesh: Mesh) -> Any:
    """`shared` on every device of a mesh; what is laid over that mesh already stays as it is."""
    whole = jax.NamedSharding(mesh, PartitionSpec())

    def put(leaf: Any) -> Any:
        sharding = getattr(leaf, "sharding", None)
        laid = isinstance(sharding, jax.NamedSharding) and sharding.mesh == mesh
        return leaf if laid else meshes.place(leaf, whole)

    return jax.tree.map(put, shared)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _KeyData:
    """The bits of typed keys: these, unlike keys, may lie on the host and on other processes."""

    bits: Any
    kind: str = dataclasses.field(metadata={"static": True})


def _pack_keys(members: Any) -> Any:
    def pack(leaf: Any) -> Any:
        if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return _KeyData(jax.random.key_data(leaf), str(jax.random.key_impl(leaf)))
        return leaf

    return jax.tree.map(pack, members)


def _unpack_keys(members: Any) -> Any:
    def unpack(leaf: Any) -> Any:
        if isinstance(leaf, _KeyData):
            return jax.random.wrap_key_data(leaf.bits, impl=leaf.kind)
        return leaf

    return jax.tree.map(unpack, members, is_leaf=lambda leaf: isinstance(leaf, _KeyData))


def _groups(missing: list[int], n_devices: int) -> list[list[int]]:
    """Lanes of each call, one per device; the last call repeats a lane to fill all devices."""
    groups = [missing[at : at + n_devices] for at in range(0, len(missing), n_devices)]
    return [group + group[-1:] * (n_devices - len(group)) for group in groups]


def _placed_lanes(members: Any, group: list[int], width: int, mesh: Mesh) -> Any:
    """Members of some lanes on their devices, leading axes [lanes, width]; the last member pads."""
    index = np.array([np.arange(i * width, (i + 1) * width) for i in group])
    index = np.minimum(index, _n_members(members) - 1)
    by_lane = jax.NamedSharding(mesh, PartitionSpec("models"))
    return meshes.place(tree.take(members, index), by_lane)
