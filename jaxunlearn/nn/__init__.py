"""Networks (Flax NNX definitions behind the common contract); no training code."""

from jaxunlearn.nn import decoder, dual_cnn, generate, likelihood, weights
from jaxunlearn.nn._batch_norm import BatchNorm
from jaxunlearn.nn._cnn import cnn
from jaxunlearn.nn._mlp import mlp
from jaxunlearn.nn._multiply_adds import multiply_adds
from jaxunlearn.nn._normalised import normalised
from jaxunlearn.nn._resnet9 import resnet9
from jaxunlearn.nn._slim_cnn import SLIM_CHANNELS, fold_batch_norm, minimal_cnn, slim_cnn
from jaxunlearn.nn._small_cnn import small_cnn
from jaxunlearn.nn._wide_resnet import wide_resnet
from jaxunlearn.nn.conv import Conv, conv, plain_convolutions

__all__ = [
    "SLIM_CHANNELS",
    "BatchNorm",
    "Conv",
    "cnn",
    "conv",
    "decoder",
    "dual_cnn",
    "fold_batch_norm",
    "generate",
    "likelihood",
    "minimal_cnn",
    "mlp",
    "multiply_adds",
    "normalised",
    "plain_convolutions",
    "resnet9",
    "slim_cnn",
    "small_cnn",
    "weights",
    "wide_resnet",
]
