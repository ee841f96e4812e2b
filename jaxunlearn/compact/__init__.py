"""Small networks: dual-branch training, fusion, unfreezing schedules, folds, export.

.. include:: README.md
"""

from jaxunlearn.compact import (
    architecture,
    files,
    fitting,
    measure,
    phases,
    recipe,
    schedules,
    slim,
    study,
)
from jaxunlearn.compact.architecture import Architecture
from jaxunlearn.compact.recipe import Recipe, Warp
from jaxunlearn.compact.slim import SlimRecipe

__all__ = ["Architecture", "Recipe", "SlimRecipe", "Warp", "architecture", "files", "fitting"]
__all__ += ["measure", "phases", "recipe", "schedules", "slim", "study"]
