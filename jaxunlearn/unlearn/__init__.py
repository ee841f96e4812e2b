"""Unlearning methods, and the job that compares them with retraining."""

from jaxunlearn.unlearn import (
    attribute,
    baselines,
    comparison,
    exact,
    language,
    matching,
    methods,
    objectives,
    paths,
    training,
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
    "attribute",
    "baselines",
    "comparison",
    "exact",
    "language",
    "matching",
    "methods",
    "objectives",
    "paths",
    "recipe",
    "scrub",
    "ssd",
    "training",
]
