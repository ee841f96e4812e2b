"""The main job: many models forget by several methods, and retrained oracles judge them.

.. include:: README.md
"""

from jaxunlearn.comparison import attribute, estimates, judging, models, settings, study
from jaxunlearn.comparison.settings import Estimates, Settings
from jaxunlearn.comparison.study import Job, Methods, devices, execute, forget_set, prepare, run

__all__ = [
    "Estimates",
    "Job",
    "Methods",
    "Settings",
    "attribute",
    "devices",
    "estimates",
    "execute",
    "forget_set",
    "judging",
    "models",
    "prepare",
    "run",
    "settings",
    "study",
]
