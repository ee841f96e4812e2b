"""The main job: many models forget by several methods, and retrained oracles judge them.

.. include:: README.md
"""

from typing import TYPE_CHECKING

from jaxunlearn.lazy import exports

if TYPE_CHECKING:
    from jaxunlearn.comparison.models import Job, Methods
    from jaxunlearn.comparison.settings import Estimates, Settings
    from jaxunlearn.comparison.study import devices, execute, forget_set, prepare, run

__all__ = [
    "Estimates",
    "Job",
    "Methods",
    "Settings",
    "devices",
    "execute",
    "forget_set",
    "prepare",
    "run",
]

__getattr__, __dir__ = exports(
    __name__,
    ("attribute", "estimates", "judging", "models", "settings", "study"),
    {
        "Estimates": "settings",
        "Job": "models",
        "Methods": "models",
        "Settings": "settings",
        "devices": "study",
        "execute": "study",
        "forget_set": "study",
        "prepare": "study",
        "run": "study",
    },
)
