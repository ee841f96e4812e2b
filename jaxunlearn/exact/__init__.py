"""Exact unlearning: sharded, sliced training in several orders (S3T), and SISA.

.. include:: README.md
"""

from typing import TYPE_CHECKING

from jaxunlearn.lazy import exports

if TYPE_CHECKING:
    from jaxunlearn.exact.plan import Plan as Plan
    from jaxunlearn.exact.plan import Recipe as Recipe
    from jaxunlearn.exact.service import Service as Service

__getattr__, __dir__ = exports(
    __name__,
    (
        "alternatives",
        "curves",
        "deletion",
        "ledger",
        "lifetimes",
        "material",
        "opening",
        "orders",
        "plan",
        "planner",
        "prefixes",
        "pretraining",
        "service",
        "serving",
        "settings",
        "simulation",
        "sliceable",
        "state",
        "store",
    ),
    {"Plan": "plan", "Recipe": "plan", "Service": "service"},
)
