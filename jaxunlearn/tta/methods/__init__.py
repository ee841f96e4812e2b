"""The methods, one a file; `METHODS` has them by name."""

from collections.abc import Callable
from types import MappingProxyType

from jaxunlearn.tta.method import Method
from jaxunlearn.tta.methods.adacontrast import AdaContrast
from jaxunlearn.tta.methods.cotta import CoTTA
from jaxunlearn.tta.methods.rmt import RMT
from jaxunlearn.tta.methods.rotta import RoTTA
from jaxunlearn.tta.methods.santa import SANTA
from jaxunlearn.tta.methods.statistics import BN, BNEMA, BNAlpha, Source
from jaxunlearn.tta.methods.tent import Tent

METHODS: MappingProxyType[str, Callable[..., Method]] = MappingProxyType(
    {
        "source": Source,
        "bn": BN,
        "bn_alpha": BNAlpha,
        "bn_ema": BNEMA,
        "tent": Tent,
        "cotta": CoTTA,
        "rotta": RoTTA,
        "santa": SANTA,
        "adacontrast": AdaContrast,
        "rmt": RMT,
    }
)
