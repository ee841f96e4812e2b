"""The main job: many models forget by several methods, and retrained oracles judge them.

.. include:: README.md
"""

from typing import TYPE_CHECKING

from jaxunlearn.lazy import exports

if TYPE_CHECKING:
    from jaxunlearn.comparison.forgetting import forget_set as forget_set
    from jaxunlearn.comparison.models import Job as Job
    from jaxunlearn.comparison.models import Methods as Methods
    from jaxunlearn.comparison.settings import Estimates as Estimates
    from jaxunlearn.comparison.settings import Settings as Settings
    from jaxunlearn.comparison.study import devices as devices
    from jaxunlearn.comparison.study import execute as execute
    from jaxunlearn.comparison.study import prepare as prepare
    from jaxunlearn.comparison.study import run as run

__getattr__, __dir__ = exports(
    __name__,
    (
        "ahead",
        "attribute",
        "checking",
        "estimates",
        "forgetting",
        "judging",
        "models",
        "plugins",
        "settings",
        "study",
        "weights",
    ),
    {
        "Estimates": "settings",
        "Job": "models",
        "Methods": "models",
        "Settings": "settings",
        "devices": "study",
        "execute": "study",
        "forget_set": "forgetting",
        "prepare": "study",
        "run": "study",
    },
)
