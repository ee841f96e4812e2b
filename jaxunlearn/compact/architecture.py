"""The networks that `jaxunlearn compact` trains, by name."""

import dataclasses
from typing import Any, Literal, TypeAlias, get_args

from jaxunlearn import nn
from jaxunlearn.core import checks
from jaxunlearn.core.model import Model
from jaxunlearn.nn.images import dual_cnn

Name: TypeAlias = Literal["dual", "slim", "minimal"]
NAMES = get_args(Name)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Which network, and of what size; a file keeps it with the weights.

    Attributes:
        input_shape: height, width and channels of an image.
        n_classes: number of classes.
        network: "dual", the fused one of two branches; "slim" or "minimal", with BatchNorm.
        filters: filters of a branch's first convolution ("dual").
        hidden: units between the branches and the answer ("dual").
        channels: output channels of the convolutions ("slim").
        classes: class names, if there are any.
    """

    input_shape: tuple[int, int, int]
    n_classes: int = 10
    network: Name = "dual"
    filters: int = 10
    hidden: int = 32
    channels: tuple[int, ...] = nn.SLIM_CHANNELS
    classes: tuple[str, ...] = ()

    def __post_init__(self):
        checks.one_of("network", self.network, NAMES)
        if self.classes and len(self.classes) != self.n_classes:
            raise ValueError(
                f"classes has {len(self.classes)} names, but n_classes is {self.n_classes}"
            )

    @classmethod
    def of_json(cls, record: dict[str, Any]) -> "Architecture":
        """From what `dataclasses.asdict` and JSON made of one."""
        if not isinstance(record, dict):
            raise ValueError(f"{record!r} describes no network")
        lists: dict[str, Any] = {
            name: tuple(value) for name, value in record.items() if isinstance(value, list)
        }
        return cls(**(record | lists))

    @property
    def pair(self) -> dual_cnn.Pair:
        """Both models of the dual network."""
        return dual_cnn.build(self.input_shape, self.n_classes, self.filters, self.hidden)

    @property
    def model(self) -> Model:
        """What answers: one input, logits [B, n_classes]; BatchNorm is folded."""
        return self.pair.fused if self.network == "dual" else self._with_batch_norm(folded=True)

    @property
    def trained(self) -> Model:
        """What is trained, of "slim" and "minimal": BatchNorm is not folded yet."""
        return self._with_batch_norm(folded=False)

    def _with_batch_norm(self, folded: bool) -> Model:
        if self.network == "minimal":
            return nn.minimal_cnn(self.input_shape, self.n_classes, folded=folded)
        return nn.slim_cnn(self.input_shape, self.channels, self.n_classes, folded=folded)
