"""Test-time adaptation: a network adapts to a stream of images while it predicts them.

.. include:: README.md
"""

from typing import TYPE_CHECKING

from jaxunlearn.lazy import exports

if TYPE_CHECKING:
    from jaxunlearn.tta._augment import Augmentation as Augmentation
    from jaxunlearn.tta._augment import Factors as Factors
    from jaxunlearn.tta._augment import augment as augment
    from jaxunlearn.tta._run import Adapted as Adapted
    from jaxunlearn.tta._run import run as run
    from jaxunlearn.tta.methods import METHODS as METHODS
    from jaxunlearn.tta.streams import domains as domains

__getattr__, __dir__ = exports(
    __name__,
    "adaptation banks choice contrast_views contrasting corrupted_files deployment early_norms"
    " feed filters fisher kept_runs lanes losses masked material measures memory method methods"
    " network plugins projector prototypes replay settings source_network streams study"
    " views".split(),
    dict.fromkeys(("Augmentation", "Factors", "augment"), "_augment")
    | {"METHODS": "methods", "Adapted": "_run", "domains": "streams", "run": "_run"},
)
