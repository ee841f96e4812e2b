"""Settings of a study of test-time adaptation; nothing heavy is imported here."""

import dataclasses
from typing import Literal

Setting = Literal[
    "continual",
    "gradual",
    "reset",
    "mixed",
    "correlated",
    "gradual_correlated",
    "reset_correlated",
    "mixed_correlated",
    "drift",
]


@dataclasses.dataclass(frozen=True)
class Training:
    """How the source network is trained: SGD, Nesterov's momentum 0.9, a triangular learning rate.

    Attributes:
        epochs: passes over the training set.
        batch_size: images of a step.
        learning_rate: peak, reached after a fifth of the steps.
        weight_decay: coupled weight decay.
        flip: whether images are mirrored at random.
        shift: pixels by which they are shifted at most.
    """

    epochs: int = 15
    batch_size: int = 60
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    flip: bool = False
    shift: int = 1


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which network meets which stream; together with the methods it decides every number.

    Attributes:
        data: the labelled set that the network is trained on, whose validation images are
            corrupted; see `data.load`. Images of one channel become grey ones of three.
        corrupted: in place of these, images that are corrupted already: a folder of `.npy` files as
            CIFAR-10-C has, one of folders as ImageNet-C has, or an `.npy` or `.npz` file of a
            single domain, with or without labels.
        network: "wrn-DEPTH-WIDTH" or another network of `nn.by_name`; with `weights` one of
            `nn.classifiers.from_pretrained`.
        weights: a file of trained weights; without one the network is trained.
        size: height and width that images are scaled to; by default as they are, 16 of "digits".
        n_train: training images, the source.
        n_val: images of each domain.
        setting: how domains follow on each other, see `streams`: "continual", "gradual", "reset",
            "mixed", "correlated", "gradual_correlated", "reset_correlated", "mixed_correlated", or
            "drift", which glides from one corruption to another.
        corruptions: their names, in order; by default the fifteen of ImageNet-C.
        severity: of "continual" and the like, 1 to 5.
        family: constants of the corruptions, those of CIFAR-10-C or of ImageNet-C.
        rounds: how often the domains recur.
        clean_between: whether clean images come between them.
        delta: of correlated settings, the concentration of a Dirichlet distribution in place of
            sorted labels.
        drift_length: of "drift", batches of a change; there are as many changes as corruptions.
        batch_size: images that arrive together.
        window: images arrive one by one, and the last so many make up a batch.
        reset_every: updates after which a method starts anew (RDumb: "eta" with 1000).
        n_seeds: runs of each method, with other orders of images and other draws.
        seed: of the first run, and of the source network.
        batch_shards: devices that share each batch; part of what decides the bits.
        compute: type of the network's computation.
        training: how the source network is trained.
    """

    data: str = "digits"
    corrupted: str | None = None
    network: str = "wrn-10-1"
    weights: str | None = None
    size: int | None = None
    n_train: int | None = None
    n_val: int | None = None
    setting: Setting = "continual"
    corruptions: tuple[str, ...] = ()
    severity: float = 5
    family: Literal["cifar", "imagenet"] = "cifar"
    rounds: int = 1
    clean_between: bool = False
    delta: float | None = None
    drift_length: int = 10
    batch_size: int = 100
    window: int | None = None
    reset_every: int | None = None
    n_seeds: int = 1
    seed: int = 0
    batch_shards: int = 1
    compute: Literal["float32", "bfloat16", "float16"] = "float32"
    training: Training = Training()
