"""What the tensors of residual networks are called in files: RobustBench's and torchvision's names.

Leaves of the parameters are `params/...` here, those of the statistics `stats/...`.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence

from jaxunlearn.nn.files.tables import CONVOLUTION, LINEAR, Row, Table, layer_rows

# How often a network saw a batch: PyTorch counts it and, with a fixed momentum, never reads it.
_IGNORE = r"(?:.*\.)?num_batches_tracked"
_PRE_ACTIVATION = {"norm1": "bn1", "conv1": "conv1", "norm2": "bn2", "conv2": "conv2"}
_POST_ACTIVATION = _PRE_ACTIVATION | {
    "conv3": "conv3",
    "norm3": "bn3",
    "shortcut": "downsample.0",
    "shortcut_norm": "downsample.1",
}
_RESNEXT = _POST_ACTIVATION | {
    "conv1": "conv_reduce",
    "norm1": "bn_reduce",
    "conv2": "conv_conv",
    "norm2": "bn",
    "conv3": "conv_expand",
    "norm3": "bn_expand",
}


def wide_resnet(prefix: str, n_blocks: Sequence[int]) -> Table:
    """`block1.layer.0.conv1.weight`, ..., as in RobustBench; `prefix` stands before each name."""
    ends = {"stem": "conv1", "norm": "bn1", "head": "fc"}
    block = _PRE_ACTIVATION | {"shortcut": "convShortcut"}
    return _table(prefix, ends, "block{stage}.layer.{i}", n_blocks, block)


def resnet50(prefix: str, n_blocks: Sequence[int]) -> Table:
    """`layer1.0.conv1.weight`, ..., as in torchvision."""
    ends = {"stem": "conv1", "norm": "bn1", "head": "fc"}
    return _table(prefix, ends, "layer{stage}.{i}", n_blocks, _POST_ACTIVATION)


def resnext29(prefix: str, n_blocks: Sequence[int]) -> Table:
    """`stage_1.0.conv_reduce.weight`, ..., as in RobustBench."""
    ends = {"stem": "conv_1_3x3", "norm": "bn_1", "head": "classifier"}
    return _table(prefix, ends, "stage_{stage}.{i}", n_blocks, _RESNEXT)


def resnet26_gn(prefix: str, n_blocks: Sequence[int]) -> Table:
    """`layer1.0.conv1.weight`, ..., as in the code of test-time training (Sun et al. 2020)."""
    ends = {"stem": "conv1", "norm": "bn", "head": "fc"}
    return _table(prefix, ends, "layer{stage}.{i}", n_blocks, _PRE_ACTIVATION)


def _table(
    prefix: str,
    ends: Mapping[str, str],
    place: str,
    n_blocks: Sequence[int],
    block: Mapping[str, str],
) -> Table:
    """Rows of the layers before and after the blocks, and of those of each block."""

    def modules() -> Iterator[tuple[str, str]]:
        yield from ends.items()
        numbers = itertools.count()
        for stage, n in enumerate(n_blocks, start=1):
            for i in range(n):
                ours, theirs = f"blocks/{next(numbers):03d}", place.format(stage=stage, i=i)
                yield from ((f"{ours}/{a}", f"{theirs}.{b}") for a, b in block.items())

    rows = itertools.chain.from_iterable(_rows(ours, prefix + theirs) for ours, theirs in modules())
    return Table(tuple(rows), ignore=_IGNORE)


def _rows(ours: str, theirs: str) -> Iterator[Row]:
    yield from layer_rows(f"params/{ours}", theirs, LINEAR if ours == "head" else CONVOLUTION)
    yield Row(f"stats/{ours}/(mean|var)", rf"{theirs}.running_\1")
