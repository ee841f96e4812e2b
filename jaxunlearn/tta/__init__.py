"""Test-time adaptation: a network adapts to a stream of images while it predicts them.

.. include:: README.md
"""

from jaxunlearn.tta import (
    adaptation,
    banks,
    contrast_views,
    contrasting,
    feed,
    losses,
    masked,
    memory,
    method,
    methods,
    network,
    projector,
    prototypes,
    replay,
    views,
)
from jaxunlearn.tta._augment import Augmentation, Factors, augment
from jaxunlearn.tta._run import Adapted, run
from jaxunlearn.tta.methods import METHODS

__all__ = ["METHODS", "Adapted", "Augmentation", "Factors", "adaptation", "augment", "banks"]
__all__ += ["contrast_views", "contrasting", "feed", "losses", "masked", "memory", "method"]
__all__ += ["methods", "network", "projector", "prototypes", "replay", "run", "views"]
