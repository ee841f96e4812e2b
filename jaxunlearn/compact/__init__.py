"""Small networks: dual-branch training, fusion, unfreezing schedules, folds, export."""

from jaxunlearn.compact import files, job, measure, networks, recipe, schedules, slim, training
from jaxunlearn.compact.networks import Architecture
from jaxunlearn.compact.recipe import Recipe, Warp

__all__ = [
    "Architecture",
    "Recipe",
    "Warp",
    "files",
    "job",
    "measure",
    "networks",
    "recipe",
    "schedules",
    "slim",
    "training",
]
