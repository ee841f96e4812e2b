"""The retrain-equivalence study: the same stages in different orders, then local unlearning.

.. include:: README.md
"""

from jaxunlearn.paths import forgetting, measures, results, settings, stage_data, study
from jaxunlearn.paths.study import Job, Settings, devices, execute, prepare

__all__ = [
    "Job",
    "Settings",
    "devices",
    "execute",
    "forgetting",
    "measures",
    "prepare",
    "results",
    "settings",
    "stage_data",
    "study",
]
