"""The retrain-equivalence study: the same stages in different orders, then local unlearning.

.. include:: README.md
"""

from typing import TYPE_CHECKING

from jaxunlearn.lazy import exports

if TYPE_CHECKING:
    from jaxunlearn.paths.job import Job as Job
    from jaxunlearn.paths.settings import Settings as Settings
    from jaxunlearn.paths.study import devices as devices
    from jaxunlearn.paths.study import execute as execute
    from jaxunlearn.paths.study import prepare as prepare
    from jaxunlearn.paths.study import run as run

__getattr__, __dir__ = exports(
    __name__,
    ("forgetting", "job", "measures", "results", "settings", "stage_data", "study"),
    {
        "Job": "job",
        "Settings": "settings",
        "devices": "study",
        "execute": "study",
        "prepare": "study",
        "run": "study",
    },
)
