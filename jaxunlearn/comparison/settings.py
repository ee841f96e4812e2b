"""What a comparison and an attribution are made of; nothing heavy is imported here."""

import dataclasses
from typing import Literal

from jaxunlearn.core import checks
from jaxunlearn.unlearn.method_settings import Training

Attribution = Literal["ridge", "lasso", "difference", "trak"]


@dataclasses.dataclass(frozen=True)
class Estimates:
    """What the matching methods are given beside a model; shared by all models, paid for once.

    Attributes:
        members: models on random subsets that datamodels are regressed on; a ridge on fewer than
            about four per training point underestimates the effect of a coherent forget set.
        subset_fraction: the part of the training set that each of them is trained on.
        attribution: how the effect of the forget set is estimated: a regression on the members (see
            `attribution.datamodels`), or "trak", which needs no members.
        oracles: retrained models whose mean logits Oracle Matching takes as targets for all models;
            others than those that judge. 0: each model matches an oracle of its own instead, which
            keeps the spread that KLOM sees.
        checkpoints: full models whose gradients "trak" uses.
        features: numbers that "trak" projects a gradient to.
        l2: penalty of "trak", in units of the mean diagonal entry.
    """

    members: int = 2000
    subset_fraction: float = 0.5
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
        model: "mlp", "cnn", "cnn_bn", "small_cnn", "resnet9", or "wrn-16-1" and other wide
            residual networks; see `nn.by_name`. Images of integers are normalised by the
            training set's mean and deviation. By default "small_cnn" for images of integers with
            sides of at least 16 pixels, "mlp" for everything else.
        multiply_adds: most multiply-adds per image of a "small_cnn".
        size: height and width that images are scaled to; by default 32 where those of a folder are
            of several sizes, which is said, else as they are.
        n_train: training examples; by default 1,200 of "digits", four fifths of other data in one
            piece, and all of a set that is split.
        n_val: validation examples; by default all that are left.
        forget: "random", "class" (random within a class), "cluster" (an outlying example of a class
            and its nearest neighbours within it), "pc" (the top of the first principal component),
            or "file" (from a file of indices, or a mask); "files" and "classes" where
            `forget_files` and `forget_classes` say so.
        forget_size: size of a forget set that is drawn; by default 30, and at most half of what it
            is drawn from.
        forget_class: class of a "class" or "cluster" forget set, by its name, or by its number
            where names are no numbers; by default the first (8 of "digits").
        forget_file: for "file": a text file of training indices, or an `.npy` file of them or of a
            mask over the training examples, or over all examples of data in one piece.
        forget_files: images of a folder that are to be forgotten, as paths or as CLASS/NAME; a
            .txt file lists them, one a line. They train, however the data is split.
        forget_classes: classes that are to be forgotten whole, see `forget_class`.
        n_models: models a side, at least 2; below about 100 the noise of KLOM hides differences.
        lane_width: models computed together; part of what decides the bits.
        batch_shards: devices that share each batch (of those that they divide); part of what
            decides the bits.
        seed: where all randomness comes from; data and forget set are the same for every seed.
        training: how full models and oracles are trained.
        estimates: what the matching methods are given.
    """

    data: str = "digits"
    model: str | None = None
    multiply_adds: int = 1_000_000
    size: int | None = None
    n_train: int | None = None
    n_val: int | None = None
    forget: Literal["random", "class", "cluster", "pc", "file", "files", "classes"] = "cluster"
    forget_size: int | None = None
    forget_class: str | int | None = None
    forget_file: str | None = None
    forget_files: tuple[str, ...] = ()
    forget_classes: tuple[str, ...] = ()
    n_models: int = 100
    lane_width: int = 25
    batch_shards: int = 1
    seed: int = 0
    training: Training = Training()
    estimates: Estimates = Estimates()


@dataclasses.dataclass(frozen=True)
class AttributeSettings:
    """What is attributed, and how.

    Attributes:
        data: the data set, see the settings of a comparison, as `model` to `n_val`.
        model: the network, with the same default.
        multiply_adds: most multiply-adds per image of a "small_cnn".
        size: height and width that images are scaled to, with the same default.
        n_train: training examples.
        n_val: validation examples; their margins are what is attributed.
        members: models on random subsets that datamodels are regressed on.
        held_out: further ones, which only judge.
        subset_fraction: the part of the training set that each of them is trained on.
        method: regression, see `attribution.datamodels`.
        checkpoints: models on all data whose gradients TRAK uses; 0 leaves TRAK out.
        features: numbers that TRAK projects a gradient to.
        l2: penalty of TRAK, in units of the mean diagonal entry.
        targets: validation examples that are drawn with their most helpful and harmful training
            examples.
        shown: how many of these on each side.
        lane_width: models computed together; part of what decides the bits.
        seed: where all randomness comes from.
        training: how all models are trained.
    """

    data: str = "digits"
    model: str | None = None
    multiply_adds: int = 1_000_000
    size: int | None = None
    n_train: int | None = None
    n_val: int | None = None
    members: int = 2000
    held_out: int = 100
    subset_fraction: float = 0.5
    method: Literal["ridge", "lasso", "difference"] = "ridge"
    checkpoints: int = 5
    features: int = 512
    l2: float = 0.1
    targets: tuple[int, ...] = (0, 1, 2, 3, 4)
    shown: int = 5
    lane_width: int = 25
    seed: int = 0
    training: Training = Training()


def check_run(seed: int, lane_width: int) -> None:
    """Raises a ValueError for a seed or a lane that no run can have."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}; it must lie in 0 to 2**32 - 1")
    checks.at_least("lane_width", lane_width, 1)


# Settings that had other names in folders of earlier runs: {then: now}.
RENAMED = {"budget": "multiply_adds", "estimates.alpha": "estimates.subset_fraction"}
ATTRIBUTE_RENAMED = {"budget": "multiply_adds", "alpha": "subset_fraction"}
