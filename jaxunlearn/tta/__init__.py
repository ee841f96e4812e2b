"""Test-time adaptation: a network adapts to a stream of images while it predicts them.

.. include:: README.md
"""

from jaxunlearn.tta import adaptation, feed, losses, masked, method, methods, network, replay
from jaxunlearn.tta._augment import Augmentation, Factors, augment
from jaxunlearn.tta._run import Adapted, run
from jaxunlearn.tta.methods import METHODS

__all__ = ["METHODS", "Adapted", "Augmentation", "Factors", "adaptation", "augment", "feed"]
__all__ += ["losses", "masked", "method", "methods", "network", "replay", "run"]
