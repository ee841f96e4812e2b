"""Unlearning methods for classifiers, and objectives for language models.

.. include:: README.md
"""

from typing import TYPE_CHECKING

from jaxunlearn.lazy import exports

if TYPE_CHECKING:
    from jaxunlearn.unlearn._problem import Problem as Problem
    from jaxunlearn.unlearn._problem import Unlearned as Unlearned
    from jaxunlearn.unlearn._scrub import scrub as scrub
    from jaxunlearn.unlearn._ssd import ssd as ssd
    from jaxunlearn.unlearn.method_settings import SSD as SSD
    from jaxunlearn.unlearn.method_settings import Scrub as Scrub
    from jaxunlearn.unlearn.methods import BASELINES as BASELINES
    from jaxunlearn.unlearn.methods import METHODS as METHODS
    from jaxunlearn.unlearn.methods import recipe as recipe

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
