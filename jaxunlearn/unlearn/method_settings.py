"""Settings of the unlearning methods, with their defaults; nothing heavy is imported here.

The command line reads them before it needs JAX. Unless a docstring says otherwise, defaults come
from `experiments/digits/choose.py`.
"""

import dataclasses
from typing import Any, ClassVar, Literal

Loss = Literal["mse", "ce", "kd"]


@dataclasses.dataclass(frozen=True)
class Descent:
    """Epochs of SGD at a constant learning rate; a method sets the defaults.

    Attributes:
        epochs: passes over the data.
        batch_size: examples per step.
        learning_rate: constant learning rate.
        momentum: SGD momentum.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float = 0.9


@dataclasses.dataclass(frozen=True)
class DecayedDescent(Descent):
    """`Descent` with weight decay.

    Attributes:
        weight_decay: coupled weight decay, on all parameters.
    """

    weight_decay: float = 5e-4


@dataclasses.dataclass(frozen=True)
class Training(DecayedDescent):
    """SGD with momentum, coupled weight decay and a triangular learning rate.

    The shape of the recipe is that of Datamodel Matching (arXiv 2410.23232) and its ResNet-9; the
    constants are ours, for small networks.

    Attributes:
        epochs: passes over the training set.
        batch_size: examples per step; incomplete batches are dropped.
        learning_rate: peak, reached after a fifth of the steps.
        augment: any of "flip", "translate" (by up to 2 pixels) and "cutout" (a square of 4), drawn
            anew for every image and step; the order is always this one.
    """

    epochs: int = 20
    batch_size: int = 60
    learning_rate: float = 0.2
    augment: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class NoSettings:
    """Nothing to set."""


@dataclasses.dataclass(frozen=True)
class FineTune(DecayedDescent):
    """Settings of `finetune`.

    Attributes:
        epochs: passes over the retain set.
    """

    epochs: int = 10
    batch_size: int = 60
    learning_rate: float = 0.2


@dataclasses.dataclass(frozen=True)
class Ascent(Descent):
    """Settings of `ascent`.

    Attributes:
        epochs: passes over the forget set.
    """

    epochs: int = 3
    batch_size: int = 30
    learning_rate: float = 0.01


@dataclasses.dataclass(frozen=True)
class AscentDescent:
    """Settings of `ascent_descent`.

    Attributes:
        steps: number of steps.
        batch_size: examples per step of the retain set, and as many of the forget set.
        learning_rate: constant learning rate.
        momentum: SGD momentum.
        weight_decay: coupled weight decay.
        forget_weight: weight of the forget loss, which is ascended.
    """

    steps: int = 60
    batch_size: int = 30
    learning_rate: float = 0.03
    momentum: float = 0.9
    weight_decay: float = 5e-4
    forget_weight: float = 0.02


@dataclasses.dataclass(frozen=True)
class RandomLabels(DecayedDescent):
    """Settings of `random_labels`.

    Attributes:
        epochs: passes over the training set with its changed labels.
    """

    epochs: int = 5
    batch_size: int = 60
    learning_rate: float = 0.01


@dataclasses.dataclass(frozen=True)
class Scrub:
    """Settings of `scrub`; released code has learning rate 0.01 for CIFAR-10.

    Attributes:
        epochs: passes over the retain set.
        ascent_epochs: how many of the first passes begin with a pass over the forget set.
        retain_batch: examples per retain step.
        forget_batch: examples per forget step.
        learning_rate: SGD learning rate; multiplied by 0.1 at each epoch in `decay_at`.
        decay_at: epochs, counted from 0.
        momentum: SGD momentum.
        weight_decay: coupled weight decay.
        temperature: temperature of both divergences.
        alpha: weight of the divergence on the retain set.
        gamma: weight of the cross-entropy on the retain set.
    """

    epochs: int = 5
    ascent_epochs: int = 3
    retain_batch: int = 60
    forget_batch: int = 30
    learning_rate: float = 0.1
    decay_at: tuple[int, ...] = (3,)
    momentum: float = 0.9
    weight_decay: float = 5e-4
    temperature: float = 4.0
    alpha: float = 0.1
    gamma: float = 0.99


@dataclasses.dataclass(frozen=True)
class SSD:
    """Settings of `ssd`; released code has alpha 10 and lam 1 for CIFAR-10.

    Attributes:
        alpha: how many times as important a parameter must be to the forget set to be dampened.
        lam: strength of the dampening; the factor is at most 1.
    """

    alpha: float = 20.0
    lam: float = 0.5


@dataclasses.dataclass(frozen=True)
class OracleMatching:
    """Settings of `oracle_matching`; released code has batches of 512, 4 epochs and rate 1e-4.

    That is for CIFAR-10. The defaults of these three come from `experiments/digits/choose.py`, the
    others are the authors'.

    Attributes:
        epochs: passes over the sample of the forget and retain set.
        batch_size: examples per step; the last batch of an epoch may be smaller.
        learning_rate: Adam's in the first epoch.
        decay: factor on the learning rate after every epoch.
        forget_multiplier: copies of the forget set in the sample; of a fraction its first points.
        retain_multiplier: points of the retain set in the sample, as multiple of the forget set's.
        proximity: weight of the squared distance to the first parameters.
        loss: "mse" of logits; "ce", cross-entropy against the targets' softmax; "kd", a quarter of
            distillation at temperature 2 and three of cross-entropy against the targets' argmax,
            Adam begun anew in every epoch.
    """

    epochs: int = 5
    batch_size: int = 60
    learning_rate: float = 1e-2
    decay: float = 0.95
    forget_multiplier: float = 5.0
    retain_multiplier: float = 20.0
    proximity: float = 0.0
    loss: Loss = "mse"

    needs: ClassVar[str] = "oracle_logits"


@dataclasses.dataclass(frozen=True)
class DatamodelMatching(OracleMatching):
    """Settings of `datamodel_matching`: those of Oracle Matching, and one more.

    Attributes:
        multiplier: tau, factor on the effect that is subtracted.
    """

    epochs: int = 20
    learning_rate: float = 3e-3
    multiplier: float = 1.0

    needs: ClassVar[str] = "effect"


@dataclasses.dataclass(frozen=True)
class DatamodelDirect:
    """Settings of `datamodel_direct`.

    Attributes:
        multiplier: tau, factor on the effect that is subtracted.
    """

    multiplier: float = 1.0

    needs: ClassVar[str] = "effect"


# Default settings of every method by its name; `methods.METHODS` adds the functions.
DEFAULTS: dict[str, Any] = {
    "none": NoSettings(),
    "retrain": Training(),
    "finetune": FineTune(),
    "ascent": Ascent(),
    "ascent_descent": AscentDescent(),
    "random_labels": RandomLabels(),
    "scrub": Scrub(),
    "ssd": SSD(),
    "oracle_matching": OracleMatching(),
    "dm_direct": DatamodelDirect(),
    "dmm": DatamodelMatching(),
}
