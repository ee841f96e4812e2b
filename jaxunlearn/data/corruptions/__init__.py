"""The common corruptions of CIFAR-10-C and ImageNet-C, made on the device, and their files.

Source: Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", ICLR 2019 (arXiv 1903.12261), with the constants of the two published sets.
"""

from jaxunlearn.data.corruptions._apply import apply
from jaxunlearn.data.corruptions._constants import FAMILIES, NAMES, constants
from jaxunlearn.data.corruptions._jpeg import jpeg_exact
from jaxunlearn.data.corruptions._readers import (
    Labelled,
    from_cifar_c,
    from_dataset,
    from_imagenet_c,
)

__all__ = [
    "FAMILIES",
    "NAMES",
    "Labelled",
    "apply",
    "constants",
    "from_cifar_c",
    "from_dataset",
    "from_imagenet_c",
    "jpeg_exact",
]
