"""Exact unlearning: sharded, sliced training in several orders (S3T), and SISA."""

from jaxunlearn.unlearn.exact import (
    baselines,
    curves,
    deletion,
    job,
    ledger,
    lifetime,
    material,
    networks,
    orders,
    plan,
    planner,
    pretraining,
    service,
    serving,
    settings,
    simulation,
    store,
    training,
)
from jaxunlearn.unlearn.exact.plan import Plan, Recipe
from jaxunlearn.unlearn.exact.service import Service

__all__ = [
    "Plan",
    "Recipe",
    "Service",
    "baselines",
    "curves",
    "deletion",
    "job",
    "ledger",
    "lifetime",
    "material",
    "networks",
    "orders",
    "plan",
    "planner",
    "pretraining",
    "service",
    "serving",
    "settings",
    "simulation",
    "store",
    "training",
]
