"""The common corruptions of CIFAR-10-C and ImageNet-C, made on the device."""

from jaxunlearn.data.corruptions._apply import apply
from jaxunlearn.data.corruptions._constants import NAMES

__all__ = ["NAMES", "apply"]
