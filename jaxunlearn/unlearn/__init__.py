"""Unlearning methods for classifiers, and objectives for language models."""

from jaxunlearn.unlearn import (
    baselines,
    language_objectives,
    matching,
    methods,
    objectives,
    scratch,
)
from jaxunlearn.unlearn._problem import Problem, Unlearned
from jaxunlearn.unlearn._scrub import Scrub, scrub
from jaxunlearn.unlearn._ssd import SSD, ssd
from jaxunlearn.unlearn.methods import BASELINES, METHODS, recipe

__all__ = [
    "BASELINES",
    "METHODS",
    "SSD",
    "Problem",
    "Scrub",
    "Unlearned",
    "baselines",
    "language_objectives",
    "matching",
    "methods",
    "objectives",
    "recipe",
    "scratch",
    "scrub",
    "ssd",
]
