"""The retrain-equivalence study: the same stages in different orders, then local unlearning.

.. include:: README.md
"""

from typing import TYPE_CHECKING

from jaxunlearn.lazy import exports

if TYPE_CHECKING:
    from jaxunlearn.paths.job import Job
    from jaxunlearn.paths.settings import Settings
    from jaxunlearn.paths.study import devices, execute, prepare, run

__all__ = ["Job", "Settings", "devices", "execute", "prepare", "run"]

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
