"""Image classifiers."""

from jaxunlearn.nn.images import dual_cnn, shapes, slim_networks, vit, vit_config, vit_tensors
from jaxunlearn.nn.images._by_name import by_name
from jaxunlearn.nn.images._cnn import cnn
from jaxunlearn.nn.images._mlp import mlp
from jaxunlearn.nn.images._normalised import normalised
from jaxunlearn.nn.images._resnet9 import resnet9
from jaxunlearn.nn.images._small_cnn import small_cnn
from jaxunlearn.nn.images._wide_resnet import wide_resnet
from jaxunlearn.nn.images.slim_networks import (
    SLIM_CHANNELS,
    fold_batch_norm,
    minimal_cnn,
    slim_cnn,
)

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
    "vit_tensors",
    "wide_resnet",
]
