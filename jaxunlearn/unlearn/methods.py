"""The unlearning methods by name: each a low-level function and its settings."""

import math
from collections.abc import Callable
from typing import Any

from jaxunlearn.unlearn import baselines, matching
from jaxunlearn.unlearn._problem import Unlearned
from jaxunlearn.unlearn._scrub import Scrub, scrub
from jaxunlearn.unlearn._ssd import SSD, ssd
from jaxunlearn.unlearn.scratch import Training, check_augment

# name: (method(model, params, stats, problem, key, **settings), default settings)
METHODS: dict[str, tuple[Callable[..., Unlearned], Any]] = {
    "none": (baselines.none, baselines.NoSettings()),
    "retrain": (baselines.retrain, Training()),
    "finetune": (baselines.finetune, baselines.FineTune()),
    "ascent": (baselines.ascent, baselines.Ascent()),
    "ascent_descent": (baselines.ascent_descent, baselines.AscentDescent()),
    "random_labels": (baselines.random_labels, baselines.RandomLabels()),
    "scrub": (scrub, Scrub()),
    "ssd": (ssd, SSD()),
    "oracle_matching": (matching.oracle_matching, matching.OracleMatching()),
    "dm_direct": (matching.datamodel_direct, matching.DatamodelDirect()),
    "dmm": (matching.datamodel_matching, matching.DatamodelMatching()),
}

# Those that need a trained model and its data only: what runs unless others are named.
BASELINES = {name: pair for name, pair in METHODS.items() if not hasattr(pair[1], "needs")}


def recipe(name: str, settings: Any = None) -> Callable[..., Unlearned]:
    """A method with its settings filled in: `(model, params, stats, problem, key) -> Unlearned`.

    Args:
        name: a key of `METHODS`.
        settings: its dataclass of settings; by default the defaults.
    """
    if name not in METHODS:
        raise ValueError(f"method is {name!r}; known methods: {', '.join(METHODS)}")
    method, default = METHODS[name]
    return bind(method, default if settings is None else settings)


def check_settings(name: str, settings: Any) -> None:
    """Raises a ValueError that names the setting of a method that is out of its range.

    Counts must be at least 1 (`ascent_epochs` may be 0), numbers finite and not negative, a
    `temperature` positive, a `momentum` below 1; the numbers of a tuple not negative.
    """
    check_augment(getattr(settings, "augment", ()))
    for setting, value in vars(settings).items():
        for number in value if isinstance(value, tuple) else (value,):
            if not isinstance(number, int | float):
                continue
            may_be_0 = isinstance(number, float) or value is not number
            least = 0 if may_be_0 or setting == "ascent_epochs" else 1
            if not least <= number < math.inf:
                raise ValueError(f"{name}.{setting} is {value}; it must be finite and >= {least}")
            if setting == "momentum" and number >= 1:
                raise ValueError(f"{name}.momentum is {number}; it must be below 1")
            if setting == "temperature" and number == 0:
                raise ValueError(f"{name}.temperature is 0; it must be positive")


def bind(method: Callable[..., Unlearned], settings: Any) -> Callable[..., Unlearned]:
    """Closes a low-level method over a frozen dataclass of settings."""

    def run(model, params, stats, problem, key) -> Unlearned:
        return method(model, params, stats, problem, key, **vars(settings))

    return run
