"""The examples of a store: what its network reads, and whether rows are those it was made with."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np

from jaxunlearn.exact.files import Files
from jaxunlearn.exact.sliceable import Config, Network, network_of
from jaxunlearn.nn.images import vit

Examples: TypeAlias = dict[str, Any]  # arrays [n, ...]: `x`, and what the network needs beside it


def check_examples(config: Config, examples: Examples, n: int) -> None:
    """Raises a ValueError unless there are n rows of every array, of the kind that is read."""
    for name in ("x", *network_of(config).arrays):
        rows = len(examples[name]) if name in examples else "no"
        if rows != n:
            raise ValueError(f"examples have {rows} rows of {name}; there are {n} ids")
    check_inputs(config, examples["x"])
    if isinstance(config, vit.Config):
        labels, n_classes = np.asarray(examples["y"]), config.n_classes
        if labels.ndim != 1 or not 0 <= labels.min() <= labels.max() < n_classes:
            raise ValueError(
                f"y has shape {list(labels.shape)} and values {labels.min()} to "
                f"{labels.max()}; [n] with 0 to {n_classes - 1} is needed"
            )


def check_inputs(config: Config, x: Any) -> None:
    """Raises a ValueError if `x` is nothing that the network reads."""
    shape, kind = np.shape(x), np.asarray(x).dtype.kind
    given = f"x is {np.asarray(x).dtype}{list(shape)}"
    if isinstance(config, vit.Config):
        if shape[1:] != config.image or len(shape) != 4 or kind != "f":
            image = ", ".join(map(str, config.image))
            raise ValueError(f"{given}; floats [n, {image}] are needed")
        if not np.isfinite(x).all():
            raise ValueError(f"{given} and holds NaN or infinity; finite values are needed")
    elif len(shape) != 2 or shape[1] > config.context or kind not in "iu":
        raise ValueError(f"{given}; integers [n, at most {config.context}] are needed")


def row_digests(network: Network, examples: Examples) -> list[str]:
    """A hash of every example."""
    arrays = {name: np.asarray(examples[name]) for name in ("x", *network.arrays)}
    kinds = {name: (str(array.dtype), array.shape[1:]) for name, array in arrays.items()}
    head = hashlib.sha256(repr(kinds).encode())
    digests = []
    for row in zip(*arrays.values(), strict=True):
        digest = head.copy()
        for part in row:
            digest.update(np.asarray(part).tobytes())
        digests.append(digest.hexdigest())
    return digests


def remaining(
    files: Files,
    config: Config,
    examples: Examples,
    ids: Sequence[str] | None,
    deleted: Iterable[str],
) -> tuple[Examples, np.ndarray]:
    """The examples that were not deleted, in the store's order, and the slice of each.

    Args:
        files: the store's files.
        config: config of its network.
        examples: arrays with a row for each id; rows of other ids are not read.
        ids: ids of the rows; by default all of the store, in its order.
        deleted: ids without whose rows it must be possible to train; they are not read either.

    Raises:
        ValueError: a row is missing, or is not what the store was made with; it is named.
    """
    given, deleted = list(files.ids) if ids is None else list(ids), set(deleted)
    wanted = [name for name in files.ids if name not in deleted]
    if not wanted:
        raise ValueError("all examples of the store were deleted: there is nothing to train on")
    check_examples(config, examples, len(given))
    at = {name: row for row, name in enumerate(given)}
    if len(at) < len(given):
        raise ValueError(f"ids has {len(given) - len(at)} that are there twice")
    for name in wanted:
        if name not in at:
            raise ValueError(f"example {name!r} is missing, and it has not been deleted")
    network = network_of(config)
    chosen = np.array([at[name] for name in wanted], np.int64)
    rows = {name: np.asarray(examples[name])[chosen] for name in ("x", *network.arrays)}
    numbers = [files.ids[name] for name in wanted]
    for name, number, digest in zip(wanted, numbers, row_digests(network, rows), strict=True):
        if digest != files.digests[number]:
            kinds = ", ".join(f"{array} is {leaf.dtype}" for array, leaf in rows.items())
            raise ValueError(f"example {name!r} is not what the store was made with ({kinds})")
    return rows, files.places[numbers]
