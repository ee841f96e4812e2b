"""Exact unlearning: sharded, sliced training in several orders (S3T), and SISA."""

from typing import TYPE_CHECKING

from jaxunlearn.lazy import exports

if TYPE_CHECKING:
    from jaxunlearn.exact.plan import Plan, Recipe
    from jaxunlearn.exact.service import Service

__all__ = ["Plan", "Recipe", "Service"]

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
