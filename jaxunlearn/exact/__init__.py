"""Exact unlearning: sharded, sliced training in several orders (S3T), and SISA."""

from typing import TYPE_CHECKING

from jaxunlearn.lazy import exports

if TYPE_CHECKING:
    from jaxunlearn.exact.plan import Plan, StageRecipe
    from jaxunlearn.exact.service import Service
    from jaxunlearn.exact.store import Store

__all__ = ["Plan", "Service", "StageRecipe", "Store"]

__getattr__, __dir__ = exports(
    __name__,
    (
        "alternatives",
        "creation",
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
        "state",
        "store",
        "weights",
    ),
    {"Plan": "plan", "Service": "service", "StageRecipe": "plan", "Store": "store"},
)
