"""Tables: where the leaves of a network lie in files, and in which layout.

A network brings one `Table`, and nothing else, to be read and written (`reader`, `writer`).
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class Form(NamedTuple):
    """The layout of a leaf in a file: the leaf is reshaped to `view`, then its axes are permuted.

    Attributes:
        axes: axes of the view in the file's order; None for our order.
        view: a shape with at most one -1, or None for the leaf's.
    """

    axes: tuple[int, ...] | None = None
    view: tuple[int, ...] | None = None

    def to_file(self, leaf: Any) -> Any:
        """The tensor that stands for a leaf."""
        leaf = leaf if self.view is None else leaf.reshape(self.view)
        return leaf if self.axes is None else leaf.transpose(self.axes)

    def from_file(self, tensor: np.ndarray) -> np.ndarray:
        """The inverse of `to_file`, before the view is reshaped to the leaf."""
        return tensor if self.axes is None else tensor.transpose(np.argsort(self.axes))

    def shape(self, leaf: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the tensor that stands for a leaf of this shape.

        >>> patches(4, 3).shape((48, 10))
        (10, 3, 4, 4)
        """
        if self.view is not None:
            rest = math.prod(leaf) // abs(math.prod(self.view))
            view = tuple(rest if size == -1 else size for size in self.view)
            if math.prod(view) != math.prod(leaf):
                raise ValueError(f"a leaf of shape {list(leaf)} has no view {list(self.view)}")
            leaf = view
        return leaf if self.axes is None else tuple(leaf[axis] for axis in self.axes)


AS_IS = Form()
LINEAR = Form(axes=(1, 0))  # [in, out] here, [out, in] in files
CONVOLUTION = Form(axes=(3, 2, 0, 1))  # HWIO here, OIHW in files


def patches(side: int, channels: int) -> Form:
    """A kernel [P P C, D] that multiplies patches, a convolution [D, C, P, P] in files."""
    return Form(CONVOLUTION.axes, (side, side, channels, -1))


class Row(NamedTuple):
    r"""What one leaf, or several by a pattern, is called in files.

    Attributes:
        leaf: regular expression for the whole name of a leaf.
        tensor: name of its tensor, where `\1` stands for a group of the expression and `{}` for the
            layer, if the leaf is stacked over layers.
        form: layout of one layer's tensor.
    """

    leaf: str
    tensor: str
    form: Form = AS_IS


def layer_rows(leaf: str, tensor: str, form: Form = LINEAR) -> tuple[Row, ...]:
    """Rows of a layer's kernel (in a form), bias, scale and table under PyTorch's names."""
    return (
        Row(f"{leaf}/kernel", f"{tensor}.weight", form),
        Row(f"{leaf}/bias", f"{tensor}.bias"),
        Row(f"{leaf}/(?:scale|table)", f"{tensor}.weight"),
    )


class Place(NamedTuple):
    """Where a leaf lies.

    Attributes:
        leaf: its name.
        tensors: names of its tensors, one for each layer, or a single one.
        shape: shape of one layer, in our layout.
        form: layout of one layer.
        start: first of its rows along the tensors' first axis; other leaves have the others.
        of: shape of each tensor.
        is_stacked: whether the leaf has a first axis of layers.
    """

    leaf: str
    tensors: tuple[str, ...]
    shape: tuple[int, ...]
    form: Form
    start: int
    of: tuple[int, ...]
    is_stacked: bool

    def cut(self, tensor: Any, index: tuple[slice, ...]) -> np.ndarray:
        """A block of one layer from its tensor; each slice has a start and a stop."""
        if self.form.view is not None:  # a block of the leaf is no block of the tensor
            whole = tensor[self.start : self.start + self.form.shape(self.shape)[0]]
            return self.form.from_file(whole).reshape(self.shape)[index]
        at = [index[axis] for axis in self.form.axes or range(len(index))]
        if at:
            at[0] = slice(at[0].start + self.start, at[0].stop + self.start)
        return self.form.from_file(tensor[tuple(at)])


@dataclasses.dataclass(frozen=True)
class Table:
    r"""Names and layouts of a network's tensors in files.

    Attributes:
        rows: rows; the first that matches a leaf counts. Leaves with the same tensor (a fused
            query, key and value, say) split its first axis among them, in the order of the rows.
        ignore: regular expression for names of tensors to leave out, of whatever type; "" for none.
        prefix: start of names that files of the bare network leave out.

    >>> table = Table((Row(r"(down|up)/(\d)/kernel", r"\1_blocks.\2.weight", CONVOLUTION),))
    >>> table.names("down/3/kernel", n_layers=1)
    ('down_blocks.3.weight',)
    """

    rows: tuple[Row, ...]
    ignore: str = ""
    prefix: str = ""

    @functools.cached_property
    def _patterns(self) -> list[re.Pattern[str]]:
        return [re.compile(row.leaf) for row in self.rows]  # more than `re` keeps by itself

    def tensor(self, leaf: str) -> tuple[int, str, Form]:
        """Number of the row of a leaf, the name of its tensor with `{}` for the layer, and form."""
        for number, pattern in enumerate(self._patterns):
            if match := pattern.fullmatch(leaf):
                row = self.rows[number]
                return number, match.expand(row.tensor), row.form
        raise ValueError(f"no row of the table is for the leaf {leaf!r}")

    def names(self, leaf: str, n_layers: int) -> tuple[str, ...]:
        """Names of the tensors of a leaf: one for each layer, or a single one."""
        _, tensor, _ = self.tensor(leaf)
        return tuple(tensor.format(i) for i in range(n_layers if "{}" in tensor else 1))

    def places(self, leaves: Mapping[str, Any]) -> list[Place]:
        """Where leaves, of which only shapes are asked, lie; those of one tensor follow another."""
        shared: dict[str, list[tuple[int, str, Form]]] = {}
        for leaf in leaves:
            number, tensor, form = self.tensor(leaf)
            shared.setdefault(tensor, []).append((number, leaf, form))
        places = []
        for tensor, entries in shared.items():
            is_stacked, together, n_rows = "{}" in tensor, [], 0
            for _, leaf, form in sorted(entries, key=lambda entry: entry[0]):
                n_layers, *shape = leaves[leaf].shape if is_stacked else (1, *leaves[leaf].shape)
                names, of = self.names(leaf, n_layers), form.shape(tuple(shape))
                together.append(Place(leaf, names, tuple(shape), form, n_rows, of, is_stacked))
                n_rows += of[0] if of else 0
            kinds = {(place.tensors, place.of[1:]) for place in together}
            if len(kinds) > 1 or (len(together) > 1 and not n_rows):
                names = ", ".join(repr(place.leaf) for place in together)
                raise ValueError(f"{names} are one tensor {tensor!r}, but do not fit together")
            places += [
                place._replace(of=(n_rows, *place.of[1:])[: len(place.of)]) for place in together
            ]
        return places
