"""Classifiers from files of weights, under RobustBench's and torchvision's names of tensors."""

import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jaxunlearn.core.checks import whole
from jaxunlearn.core.model import Model
from jaxunlearn.core.readers import reading
from jaxunlearn.core.tree import Tree
from jaxunlearn.nn.files import folder, reader
from jaxunlearn.nn.files.safetensors import Stored
from jaxunlearn.nn.files.tables import Table
from jaxunlearn.nn.images import _tensor_names
from jaxunlearn.nn.images._bottleneck import RESNET50_BLOCKS, RESNEXT29_BLOCKS, resnet50, resnext29
from jaxunlearn.nn.images._by_name import normalised
from jaxunlearn.nn.images._residual import wide_resnet
from jaxunlearn.nn.images._resnet26 import BLOCKS as RESNET26_BLOCKS
from jaxunlearn.nn.images._resnet26 import resnet26_gn

__all__ = ["Pretrained", "from_pretrained", "tensor_table"]

_HALF = (0.5,) * 3, (0.5,) * 3
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# What a network's names begin with where it was wrapped: by `DataParallel`, by a module that
# normalises before it, by `torch.compile`.
_WRAPPERS = r"(?:(?:module|model|net|1|_orig_mod)\.)*"
_MEAN, _DEVIATION = (
    rf"{_WRAPPERS}(?:{own}|(?:normalize|0)\.{theirs})"
    for own, theirs in (("mu", "mean"), ("sigma", "std"))
)


class Pretrained(NamedTuple):
    """A network and its weights.

    Attributes:
        model: takes images [B, H, W, 3] in [0, 1], or of uint8, and normalises them itself.
        params: parameters.
        stats: running statistics of BatchNorm; empty where there is none.
    """

    model: Model
    params: Tree
    stats: Tree


class _Architecture(NamedTuple):
    """How a network is built, and what files call it.

    Attributes:
        build: from the number of classes.
        table: names of its tensors, from what stands before each of them.
        statistics: mean and deviation of the images, None where they are taken as they are.
    """

    build: Callable[[int], Model]
    table: Callable[[str], Table]
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None


def from_pretrained(
    path: str | os.PathLike, architecture: str = "wrn-28-10", n_classes: int = 10
) -> Pretrained:
    """Reads a classifier from a safetensors file.

    | architecture       | names of tensors                               | normalises images by |
    |--------------------|------------------------------------------------|----------------------|
    | "wrn-DEPTH-WIDTH"  | RobustBench's WideResNet                       | nothing              |
    | "resnext29-4x32"   | RobustBench's Hendrycks2020AugMix_ResNeXt      | 0.5 and 0.5          |
    | "resnet50"         | torchvision's                                  | ImageNet's           |
    | "resnet26-gn"      | `conv1`, `layer1.0.bn1`, ..., `bn`, `fc`       | 0.5 and 0.5          |

    Tensors `mu` and `sigma`, or `mean` and `std` of a module `normalize` (`0`) before the network,
    replace the last column. Names may begin with `module.`, `model.`, `net.`, `1.` or `_orig_mod.`,
    as wrapped networks have it. `num_batches_tracked` is left out; all else has its place.

    Args:
        path: a safetensors file, or a folder with `model.safetensors`.
        architecture: see above.
        n_classes: number of outputs.

    Returns:
        Model, parameters and statistics in float32; the values are those of the file.

    Raises:
        ValueError: an unknown architecture; no such file, a pickled or a broken one; or one of
            another network: tensors that are missing, left over or of another shape. The file and
            the tensor are named.
    """
    known = _architecture(architecture)
    model, path = known.build(whole("n_classes", n_classes)), Path(path)
    params, stats = jax.eval_shape(model.init, jax.random.key(0))
    tensors = folder.tensors_at(path, ignore=known.table("").ignore)
    with reading(path):
        statistics = _normalisation(path, tensors) or known.statistics
    tensors = {name: it for name, it in tensors.items() if not _is_normalisation(name)}
    table = known.table(_prefix(tensors, known.table("")))
    shapes = {"params": params, "stats": stats}
    weights = reader.read(path, tensors, table, shapes, np.dtype(np.float32))
    model = model if statistics is None else normalised(model, *statistics)
    return Pretrained(model, weights["params"], weights["stats"])


def tensor_table(architecture: str) -> Table:
    """Names and layouts of the tensors of `from_pretrained`, without anything before the names.

    Its leaves are those of `{"params": params, "stats": stats}`.

    Raises:
        ValueError: an unknown architecture.
    """
    return _architecture(architecture).table("")


def _architecture(name: str) -> _Architecture:
    names = _tensor_names
    if residual := re.fullmatch(r"wrn-(\d+)-(\d+)", str(name)):
        depth, width = map(int, residual.groups())
        n_blocks = ((depth - 4) // 6,) * 3
        return _Architecture(
            lambda n_classes: wide_resnet(depth, width, n_classes),
            lambda prefix: names.wide_resnet(prefix, n_blocks),
            None,
        )
    others = {
        "resnext29-4x32": (resnext29, names.resnext29, RESNEXT29_BLOCKS, _HALF),
        "resnet50": (resnet50, names.resnet50, RESNET50_BLOCKS, _IMAGENET),
        "resnet26-gn": (resnet26_gn, names.resnet26_gn, RESNET26_BLOCKS, _HALF),
    }
    if name not in others:
        allowed = ", ".join(others)
        raise ValueError(f"architecture is {name!r}; it must be wrn-DEPTH-WIDTH, {allowed}")
    build, table, n_blocks, statistics = others[name]
    return _Architecture(build, lambda prefix: table(prefix, n_blocks), statistics)


def _prefix(tensors: Mapping[str, Stored], table: Table) -> str:
    """What stands before the names of the network, read off its first convolution's."""
    stem = re.escape(table.names("params/stem/kernel", 1)[0])
    matches = (re.fullmatch(f"({_WRAPPERS}){stem}", name) for name in tensors)
    return min((match[1] for match in matches if match), key=len, default="")


def _is_normalisation(name: str) -> bool:
    return bool(re.fullmatch(f"{_MEAN}|{_DEVIATION}", name))


def _normalisation(
    path: Path, tensors: Mapping[str, Stored]
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and deviation of the images, where the file has them."""
    means, deviations = (
        [name for name in tensors if re.fullmatch(pattern, name)] for pattern in (_MEAN, _DEVIATION)
    )
    if not means and not deviations:
        return None
    if len(means) != 1 or len(deviations) != 1:
        raise ValueError(
            f"{path}: the images are normalised by {', '.join(means + deviations)}; one mean (mu) "
            "and one deviation (sigma) are needed"
        )
    (mean,), (deviation,) = means, deviations
    return (
        _of_channels(mean, tensors[mean]),
        _of_channels(deviation, tensors[deviation], positive=True),
    )


def _of_channels(name: str, tensor: Stored, positive: bool = False) -> tuple[float, ...]:
    if math.prod(tensor.shape) != 3:
        raise ValueError(
            f"{tensor.file}: tensor {name!r} has shape {list(tensor.shape)}; one value for each of "
            "3 channels is needed"
        )
    values = tuple(map(float, tensor[:].reshape(3)))
    if not np.isfinite(values).all() or (positive and min(values) <= 0):
        kind = "finite values above 0" if positive else "finite values"
        raise ValueError(f"{tensor.file}: tensor {name!r} is {values}; {kind} are needed")
    return values
