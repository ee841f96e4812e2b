"""Image classifiers."""

from jaxunlearn.nn.images import classifiers, dual_cnn, shapes, slim_networks, vit, vit_config
from jaxunlearn.nn.images._bottleneck import resnet50, resnext29
from jaxunlearn.nn.images._by_name import by_name, normalised
from jaxunlearn.nn.images._residual import resnet9, wide_resnet
from jaxunlearn.nn.images._resnet26 import resnet26_gn
from jaxunlearn.nn.images._small import cnn, mlp, small_cnn
from jaxunlearn.nn.images.slim_networks import SLIM_CHANNELS, fold_batch_norm, minimal_cnn, slim_cnn

__all__ = [
    "SLIM_CHANNELS",
    "by_name",
    "classifiers",
    "cnn",
    "dual_cnn",
    "fold_batch_norm",
    "minimal_cnn",
    "mlp",
    "normalised",
    "resnet26_gn",
    "resnet50",
    "resnet9",
    "resnext29",
    "shapes",
    "slim_cnn",
    "slim_networks",
    "small_cnn",
    "vit",
    "vit_config",
    "wide_resnet",
]
