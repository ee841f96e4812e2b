"""What a comparison is made of."""

import dataclasses
from typing import Literal

from jaxunlearn.unlearn.scratch import Training

Attribution = Literal["ridge", "lasso", "difference", "trak"]


@dataclasses.dataclass(frozen=True)
class Estimates:
    """What the matching methods are given beside a model; shared by all models, paid for once.

    Attributes:
        members: models on random subsets that datamodels are regressed on; a ridge on fewer than
            about four per training point underestimates the effect of a coherent forget set.
        alpha: the fraction of the training set that each of them is trained on.
        attribution: how the effect of the forget set is estimated: a regression on the members (see
            `attribution.datamodels`), or "trak", which needs no members.
        oracles: retrained models whose mean logits Oracle Matching takes as targets for all models;
            others than those that judge. 0: each model matches an oracle of its own instead, which
            keeps the spread that KLOM sees.
        checkpoints: of "trak", full models whose gradients are used.
        features: of "trak", numbers that a gradient is projected to.
        l2: of "trak", its penalty, in units of the mean diagonal entry.
    """

    members: int = 2000
    alpha: float = 0.5
    attribution: Attribution = "ridge"
    oracles: int = 10
    checkpoints: int = 5
    features: int = 512
    l2: float = 0.1


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is compared; together with the methods' own settings it decides every number.

    Attributes:
        data: the data set: "digits" is embedded; a prepared set of tensorflow_datasets such as
            "cifar10", an `.npz` file or a folder of images; see `data.load`.
        model: "mlp" (one hidden layer of 64), "cnn" (two 3x3 convolutions), "cnn_bn", the same with
            BatchNorm, "small_cnn" (the largest within `budget`), "resnet9", or "wrn-16-1" and other
            wide residual networks by depth and width. Images of integers are normalised by the
            training set's mean and deviation.
        budget: multiply-adds per image of a "small_cnn".
        n_train: training examples; by default 1,200 of "digits" and all of another set.
        n_val: validation examples; by default all.
        forget: "random", "class" (random within a class), "cluster" (an outlying example of a class
            and its nearest neighbours within it), "pc" (the top of the first principal component),
            or "file" (indices from a file).
        forget_size: size of the forget set, unless it comes from a file.
        forget_class: class of a "class" or "cluster" forget set.
        forget_file: `.npy` or text file of training indices, for "file".
        n_models: models a side, at least 2; below about 100 the noise of KLOM hides differences.
        lane_width: models computed together; part of what decides the bits.
        batch_shards: devices that share each batch (of those that they divide); part of what
            decides the bits.
        seed: of all models; data and forget set are the same for every seed.
        training: how full models and oracles are trained.
        estimates: what the matching methods are given.
    """

    data: str = "digits"
    model: str = "mlp"
    budget: int = 1_000_000
    n_train: int | None = None
    n_val: int | None = None
    forget: Literal["random", "class", "cluster", "pc", "file"] = "cluster"
    forget_size: int = 30
    forget_class: int = 8
    forget_file: str | None = None
    n_models: int = 100
    lane_width: int = 25
    batch_shards: int = 1
    seed: int = 0
    training: Training = Training()
    estimates: Estimates = Estimates()


def check_run(seed: int, lane_width: int) -> None:
    """Raises a ValueError for a seed or a lane that no run can have."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}; it must lie in 0 to 2**32 - 1")
    if lane_width < 1:
        raise ValueError(f"lane_width is {lane_width}; it must be at least 1")
