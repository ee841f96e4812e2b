"""Networks (Flax NNX behind the common contract) and their weights; no training code.

.. include:: README.md
"""

import sys

from jaxunlearn.nn import cost, files, images, language, layers
from jaxunlearn.nn.cost import multiply_adds
from jaxunlearn.nn.images import (
    SLIM_CHANNELS,
    by_name,
    classifiers,
    cnn,
    dual_cnn,
    fold_batch_norm,
    minimal_cnn,
    mlp,
    normalised,
    resnet9,
    resnet26_gn,
    resnet50,
    resnext29,
    slim_cnn,
    small_cnn,
    vit,
    wide_resnet,
)
from jaxunlearn.nn.language import decoder, likelihood, weights
from jaxunlearn.nn.language.generation import generate
from jaxunlearn.nn.layers.batch_norm import BatchNorm
from jaxunlearn.nn.layers.convolution import Conv, conv
from jaxunlearn.nn.layers.lowering import plain_convolutions

__all__ = [
    "SLIM_CHANNELS",
    "BatchNorm",
    "Conv",
    "by_name",
    "classifiers",
    "cnn",
    "conv",
    "cost",
    "decoder",
    "dual_cnn",
    "files",
    "fold_batch_norm",
    "generate",
    "images",
    "language",
    "layers",
    "likelihood",
    "minimal_cnn",
    "mlp",
    "multiply_adds",
    "normalised",
    "plain_convolutions",
    "resnet26_gn",
    "resnet50",
    "resnet9",
    "resnext29",
    "slim_cnn",
    "small_cnn",
    "vit",
    "weights",
    "wide_resnet",
]

# These modules are imported by these names, wherever their files lie.
for _module in (classifiers, decoder, dual_cnn, likelihood, vit, weights):
    sys.modules[f"{__name__}.{_module.__name__.rpartition('.')[2]}"] = _module
