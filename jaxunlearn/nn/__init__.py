"""Networks (Flax NNX definitions behind the common contract); no training code."""

from jaxunlearn.nn._batch_norm import BatchNorm
from jaxunlearn.nn._cnn import cnn
from jaxunlearn.nn._mlp import mlp
from jaxunlearn.nn.conv import Conv, conv

__all__ = ["BatchNorm", "Conv", "cnn", "conv", "mlp"]
