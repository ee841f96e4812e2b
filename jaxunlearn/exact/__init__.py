"""Exact unlearning: sharded, sliced training in several orders (S3T), and SISA.

.. include:: README.md
"""

from typing import TYPE_CHECKING

from jaxunlearn.lazy import exports

if TYPE_CHECKING:
    from jaxunlearn.exact.plan import Plan as Plan
    from jaxunlearn.exact.plan import StageRecipe as StageRecipe
    from jaxunlearn.exact.service import Service as Service
    from jaxunlearn.exact.store import Store as Store

__getattr__, __dir__ = exports(
    __name__,
    (
        "alternatives",
        "curves",
        "deletion",
        "examples",
        "files",
        "ledger",
        "lifetimes",
        "material",
        "opening",
        "orders",
        "plan",
        "planner",
        "predictor",
        "prefixes",
        "pretraining",
        "service",
        "serving",
        "settings",
        "simulation",
        "sliceable",
        "store",
    ),
    {"Plan": "plan", "Service": "service", "StageRecipe": "plan", "Store": "store"},
)
