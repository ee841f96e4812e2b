"""Unlearning methods for classifiers, and objectives for language models."""

from typing import TYPE_CHECKING

from jaxunlearn.lazy import exports

if TYPE_CHECKING:
    from jaxunlearn.unlearn._problem import Problem, Unlearned
    from jaxunlearn.unlearn._scrub import scrub
    from jaxunlearn.unlearn._ssd import ssd
    from jaxunlearn.unlearn.method_settings import SSD, Scrub
    from jaxunlearn.unlearn.methods import BASELINES, METHODS, recipe

__all__ = ["BASELINES", "METHODS", "SSD", "Problem", "Scrub", "Unlearned", "recipe", "scrub", "ssd"]

__getattr__, __dir__ = exports(
    __name__,
    (
        "baselines",
        "language_objectives",
        "matching",
        "method_settings",
        "methods",
        "objectives",
        "scratch",
    ),
    {
        "BASELINES": "methods",
        "METHODS": "methods",
        "Problem": "_problem",
        "SSD": "method_settings",
        "Scrub": "method_settings",
        "Unlearned": "_problem",
        "recipe": "methods",
        "scrub": "_scrub",
        "ssd": "_ssd",
    },
)
