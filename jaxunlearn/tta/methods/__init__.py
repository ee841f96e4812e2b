"""The methods, one a file; `METHODS` has them by name."""

from collections.abc import Callable
from types import MappingProxyType

from jaxunlearn.tta.method import Method
from jaxunlearn.tta.methods.adacontrast import AdaContrast
from jaxunlearn.tta.methods.cmf import CMF
from jaxunlearn.tta.methods.cotta import CoTTA
from jaxunlearn.tta.methods.deyo import DeYO
from jaxunlearn.tta.methods.eata import EATA, ETA
from jaxunlearn.tta.methods.lame import LAME
from jaxunlearn.tta.methods.rmt import RMT
from jaxunlearn.tta.methods.roid import ROID
from jaxunlearn.tta.methods.rotta import RoTTA
from jaxunlearn.tta.methods.rpl import RPL
from jaxunlearn.tta.methods.santa import SANTA
from jaxunlearn.tta.methods.sar import SAR
from jaxunlearn.tta.methods.statistics import BN, BNEMA, BNAlpha, Source
from jaxunlearn.tta.methods.tent import Tent

METHODS: MappingProxyType[str, Callable[..., Method]] = MappingProxyType(
    {
        "source": Source,
        "bn": BN,
        "bn_alpha": BNAlpha,
        "bn_ema": BNEMA,
        "tent": Tent,
        "eta": ETA,
        "eata": EATA,
        "sar": SAR,
        "deyo": DeYO,
        "rpl": RPL,
        "roid": ROID,
        "cmf": CMF,
        "lame": LAME,
        "cotta": CoTTA,
        "rotta": RoTTA,
        "santa": SANTA,
        "adacontrast": AdaContrast,
        "rmt": RMT,
    }
)
