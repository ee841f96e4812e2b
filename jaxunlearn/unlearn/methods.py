"""The unlearning methods by name: each a low-level function and its settings."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from jaxunlearn.core import typed
from jaxunlearn.unlearn import baselines, matching
from jaxunlearn.unlearn._problem import Unlearned
from jaxunlearn.unlearn._scrub import scrub
from jaxunlearn.unlearn._ssd import ssd
from jaxunlearn.unlearn.method_settings import DEFAULTS
from jaxunlearn.unlearn.scratch import check_augment

_FUNCTIONS: dict[str, Callable[..., Unlearned]] = {
    "none": baselines.none,
    "retrain": baselines.retrain,
    "finetune": baselines.finetune,
    "ascent": baselines.ascent,
    "ascent_descent": baselines.ascent_descent,
    "random_labels": baselines.random_labels,
    "scrub": scrub,
    "ssd": ssd,
    "oracle_matching": matching.oracle_matching,
    "dm_direct": matching.datamodel_direct,
    "dmm": matching.datamodel_matching,
}
# name: (method(model, params, stats, problem, key, **settings), default settings)
METHODS: dict[str, tuple[Callable[..., Unlearned], Any]] = {
    name: (_FUNCTIONS[name], settings) for name, settings in DEFAULTS.items()
}

# Those that need a trained model and its data only: what runs unless others are named.
BASELINES = {name: pair for name, pair in METHODS.items() if not hasattr(pair[1], "needs")}


def recipe(name: str, settings: Any = None) -> Callable[..., Unlearned]:
    """A method with its settings filled in: `(model, params, stats, problem, key) -> Unlearned`.

    Args:
        name: a key of `METHODS`.
        settings: its dataclass of settings; by default the defaults.

    Raises:
        ValueError: no such method, or settings that are another method's, of another type or out
            of their range; the setting is named.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise ValueError(f"method is {name!r}; known methods: {', '.join(METHODS)}")
    method, default = METHODS[name]
    if settings is not None:
        typed.check("settings", settings, type(default))
        check_settings(name, settings)
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
    values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}

    def run(model, params, stats, problem, key) -> Unlearned:
        return method(model, params, stats, problem, key, **values)

    return run
