"""Small networks: dual-branch training, fusion, unfreezing schedules, folds, export."""

from jaxunlearn.compact import (
    files,
    fitting,
    job,
    measure,
    networks,
    recipe,
    schedules,
    slim,
    training,
)
from jaxunlearn.compact.networks import Architecture
from jaxunlearn.compact.recipe import Recipe, Warp
from jaxunlearn.compact.slim import SlimRecipe

__all__ = [
    "Architecture",
    "Recipe",
    "SlimRecipe",
    "Warp",
    "files",
    "fitting",
    "job",
    "measure",
    "networks",
    "recipe",
    "schedules",
    "slim",
    "training",
]
