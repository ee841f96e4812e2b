"""The networks that `jaxunlearn compact` trains, by name."""

import dataclasses
from typing import Any, Literal

from jaxunlearn.core.model import Model
from jaxunlearn.nn import dual_cnn


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Which network, and of what size; a file keeps it with the weights.

    Attributes:
        input_shape: height, width and channels of an image.
        n_classes: number of classes.
        network: "dual", the fused one of two branches.
        filters: of a branch's first convolution.
        hidden: units between the branches and the answer.
        classes: their names, if they have some.
    """

    input_shape: tuple[int, int, int]
    n_classes: int = 10
    network: Literal["dual"] = "dual"
    filters: int = 10
    hidden: int = 32
    classes: tuple[str, ...] = ()

    def __post_init__(self):
        if self.network != "dual":
            raise ValueError(f"network is {self.network!r}; dual is known")
        if self.classes and len(self.classes) != self.n_classes:
            raise ValueError(
                f"classes has {len(self.classes)} names, but n_classes is {self.n_classes}"
            )

    @classmethod
    def of_json(cls, found: dict[str, Any]) -> "Architecture":
        """From what `dataclasses.asdict` and JSON made of one."""
        lists: dict[str, Any] = {
            name: tuple(value) for name, value in found.items() if isinstance(value, list)
        }
        return cls(**(found | lists))

    @property
    def pair(self) -> dual_cnn.Pair:
        """Both models of the dual network."""
        return dual_cnn.build(self.input_shape, self.n_classes, self.filters, self.hidden)

    @property
    def model(self) -> Model:
        """What answers: one input, logits [B, n_classes]."""
        return self.pair.fused
