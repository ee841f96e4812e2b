"""The constants of the lightweight CNN's training (arXiv 2501.15547 and its author's code)."""

import dataclasses
from typing import Literal

from jaxunlearn.compact import schedules
from jaxunlearn.core import checks
from jaxunlearn.nn.images.dual_cnn import BRANCHES

# Of (stages before the last, the last one), in epochs; only the author's code is primary.
_EPOCHS = {"paper": (5, 10), "official_notebook": (10, 50)}


@dataclasses.dataclass(frozen=True)
class Warp:
    """Augmentation of the second branch, see `data.augment.warp`.

    Attributes:
        rotation: the largest angle, as a part of a full turn.
        zoom: how far the factors lie from 1 at most.
        translation: the largest shift, as a part of the image.
        brightness: what is added at most; the author's code names it and sets it to 0.
        sequential: three interpolations, as Keras does, in place of one.
    """

    rotation: float = 0.1
    zoom: float = 0.2
    translation: float = 0.2
    brightness: float = 0.0
    sequential: bool = False

    def __post_init__(self):
        for name in ("rotation", "zoom", "translation", "brightness"):
            checks.at_least(
                f"warp: {name}", getattr(self, name), 0, 1 if name == "zoom" else float("inf")
            )


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the network is trained.

    Attributes:
        batch_size: of all stages.
        learning_rate: of Nadam, which trains the branches and what is unfrozen before the last
            stage.
        sgd_learning_rate: of SGD with Nesterov's momentum of 0.9 in the last stage and the folds.
        weight_decay: of SGD, decoupled.
        dual_epochs: of the two branches, at most; they stop when either has not gained 0.1 points
            in 5 epochs, after the first 3.
        warp: augmentation of the second branch.
        heads: whose linear layers become convolutions: "both", or "first" as in the author's code,
            or "none" (drawn anew).
        schedule: of the unfreezing: paper, official_notebook, last_k, or the layers of each stage,
            e.g. `out,hidden conv_2`; see `schedules.layers_of`.
        last_k: of the schedule "last_k".
        unfreeze_epochs: of each stage but the last, at most; None: 5, of "official_notebook" 10.
        last_epochs: of the last stage, at most; None: 10, of "official_notebook" 50.
        folds: of the fine-tuning at the end, "independent" or "continued": K.
        fold_mode: "independent" starts every fold from the unfrozen model; "continued" goes on from
            fold to fold as the author's code does, so that all later models have been trained on
            the fold that judges them; "none" leaves the folds out.
        fold_epochs: of each fold, at most; it stops after 3 without gain.
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
        positive = ("batch_size", "dual_epochs", "unfreeze_epochs", "last_epochs", "fold_epochs")
        for name in positive:
            value = getattr(self, name)
            if value is not None:
                checks.whole(name, value)
        for name in ("learning_rate", "sgd_learning_rate"):
            checks.positive(name, getattr(self, name))
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
        """Of each stage of the unfreezing but the last, and of the last."""
        name = self.schedule if self.schedule in _EPOCHS else "paper"
        before, last = _EPOCHS[name]  # pyright: ignore[reportArgumentType]
        return self.unfreeze_epochs or before, self.last_epochs or last

    @property
    def min_delta(self) -> float:
        """Of the unfreezing: the author's 0.1 points keep weights that are not the best ones."""
        return 0.001 if self.schedule == "official_notebook" else 0.0


_HEADS = {"both": BRANCHES, "first": BRANCHES[:1], "none": ()}
