"""Image classifiers."""

from jaxunlearn.nn.images import dual_cnn, shapes, slim_networks, vit, vit_config
from jaxunlearn.nn.images._by_name import by_name, normalised
from jaxunlearn.nn.images._residual import resnet9, wide_resnet
from jaxunlearn.nn.images._small import cnn, mlp, small_cnn
from jaxunlearn.nn.images.slim_networks import SLIM_CHANNELS, fold_batch_norm, minimal_cnn, slim_cnn

__all__ = [
    "SLIM_CHANNELS",
    "by_name",
    "cnn",
    "dual_cnn",
    "fold_batch_norm",
    "minimal_cnn",
    "mlp",
    "normalised",
    "resnet9",
    "shapes",
    "slim_cnn",
    "slim_networks",
    "small_cnn",
    "vit",
    "vit_config",
    "wide_resnet",
]
