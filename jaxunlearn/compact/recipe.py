"""The constants of the lightweight CNN's training (arXiv 2501.15547 and its author's code)."""

import dataclasses
from typing import Literal

from jaxunlearn.compact import schedules
from jaxunlearn.core import checks, typed
from jaxunlearn.nn.images.dual_cnn import BRANCHES


@dataclasses.dataclass(frozen=True)
class Warp:
    """Augmentation of the second branch, see `data.augment.warp`.

    Attributes:
        rotation: largest angle, as a fraction of a full turn.
        zoom: largest distance of the factors from 1.
        translation: largest shift, as a fraction of the image.
        brightness: largest number added; the author's code names it and sets it to 0.
        sequential: three interpolations, as Keras does, in place of one.
    """

    rotation: float = 0.1
    zoom: float = 0.2
    translation: float = 0.2
    brightness: float = 0.0
    sequential: bool = False

    def __post_init__(self):
        checks.at_least("warp: zoom", self.zoom, 0, 1)
        for name in ("rotation", "translation", "brightness"):
            checks.at_least(f"warp: {name}", getattr(self, name), 0)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the network is trained.

    Attributes:
        batch_size: images per step in every stage.
        learning_rate: Nadam's learning rate, for the branches and what is unfrozen before the last
            stage.
        sgd_learning_rate: learning rate of SGD with Nesterov momentum 0.9, for the last stage and
            the folds.
        weight_decay: SGD's decoupled weight decay.
        dual_epochs: largest number of epochs of the two branches; they stop when either has not
            gained 0.1 points in 5 epochs, after the first 3.
        warp: augmentation of the second branch.
        heads: branches whose linear layers become convolutions: "both", or "first" as in the
            author's code, or "none" (drawn anew).
        schedule: unfreezing schedule: paper, official_notebook, last_k, or the layers of each
            stage, e.g. `out,hidden conv_2`; see `schedules.layers_of`.
        last_k: number of layers that the schedule "last_k" unfreezes first.
        unfreeze_epochs: largest number of epochs of each stage but the last; None: 5, or 10 with
            the schedule "official_notebook".
        last_epochs: largest number of epochs of the last stage; None: 10, or 50 likewise.
        folds: number K of folds of the final fine-tuning.
        fold_mode: "independent" starts every fold from the unfrozen model; "continued" goes on from
            fold to fold as the author's code does, so that all later models have been trained on
            the fold that judges them; "none" leaves the folds out.
        fold_epochs: largest number of epochs of each fold, which stops after 3 without gain.
    """

    batch_size: int = 32
    learning_rate: float = 1e-3
    sgd_learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    dual_epochs: int = 20
    warp: Warp = Warp()
    heads: Literal["both", "first", "none"] = "both"
    schedule: schedules.Schedule = "paper"
    last_k: int = 2
    unfreeze_epochs: int | None = None
    last_epochs: int | None = None
    folds: int = 6
    fold_mode: Literal["independent", "continued", "none"] = "independent"
    fold_epochs: int = 10

    def __post_init__(self):
        typed.check("recipe", self, Recipe)
        counts = ("batch_size", "dual_epochs", "unfreeze_epochs", "last_epochs", "fold_epochs")
        for name in counts:
            if getattr(self, name) is not None:
                checks.whole(name, getattr(self, name))
        for name in ("learning_rate", "sgd_learning_rate"):
            checks.positive(name, getattr(self, name))
        checks.whole("last_k", self.last_k)
        checks.at_least("weight_decay", self.weight_decay, 0)
        checks.one_of("heads", self.heads, _HEADS)
        checks.one_of("fold_mode", self.fold_mode, ("independent", "continued", "none"))
        if self.fold_mode != "none":
            checks.whole("folds", self.folds, 2)
        layers = schedules.layers_of(self.schedule, self.last_k)
        if not isinstance(self.schedule, str):
            object.__setattr__(self, "schedule", layers)

    @property
    def copied_heads(self) -> tuple[str, ...]:
        """The branches whose heads the surgery copies."""
        return _HEADS[self.heads]

    @property
    def epochs(self) -> tuple[int, int]:
        """Largest numbers of epochs of each unfreezing stage but the last, and of the last."""
        is_official = self.schedule == "official_notebook"
        before, last = (10, 50) if is_official else (5, 10)  # only the author's code is primary
        return self.unfreeze_epochs or before, self.last_epochs or last

    @property
    def min_delta(self) -> float:
        """Least gain in the unfreezing; the author's 0.1 points do not keep the best weights."""
        return 0.001 if self.schedule == "official_notebook" else 0.0


_HEADS = {"both": BRANCHES, "first": BRANCHES[:1], "none": ()}
