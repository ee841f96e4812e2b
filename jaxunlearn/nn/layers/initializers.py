"""The initialisations that PyTorch code gives its layers."""

from flax import nnx

# PyTorch's default for convolutions and linear layers: Kaiming uniform with a = sqrt(5), that is
# uniform within +-1 / sqrt(fan_in).
torch_default = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
# He et al. 2015 in the form of the residual networks: normal(0, sqrt(2 / (k k n_out))).
fan_out_normal = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
