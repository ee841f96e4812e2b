"""Classifiers from files against PyTorch: logits, features, statistics, gradients."""

import jax
import numpy as np
import pytest

from jaxunlearn.core import tree
from jaxunlearn.nn import classifiers

torch = pytest.importorskip("torch", reason="needs the parity extra")
safetensors = pytest.importorskip("safetensors.torch")

from benchmarks.peers import torch_classifiers as peers  # noqa: E402

slow = pytest.mark.slow
NETWORKS = {
    "wrn-10-1": lambda: peers.WideResNet(10, 1, 7),
    "wrn-16-2": lambda: peers.WideResNet(16, 2, 7),
    "resnet26-gn": lambda: peers.ResNet26(7),
    "resnext29-4x32": lambda: peers.ResNeXt29(7),
    "resnet50": lambda: peers.ResNet50(7),
}
HEAVY = ("resnext29-4x32", "resnet50", "wrn-16-2")
# Few pixels at the end make BatchNorm of a batch lose digits, in PyTorch as much as here.
SIDES = {"resnext29-4x32": 32, "resnet50": 96}
MARKED = [pytest.param(name, marks=[slow] * (name in HEAVY)) for name in NETWORKS]


def both(name, folder):
    net = peers.drawn(NETWORKS[name]())
    safetensors.save_file(net.state_dict(), folder / "net.safetensors")
    return net, classifiers.from_pretrained(folder / "net.safetensors", name, n_classes=7)


def images(name, n=4):
    side = SIDES.get(name, 16)
    return np.random.default_rng(1).uniform(size=(n, side, side, 3)).astype(np.float32)


def to_torch(x):
    return torch.tensor(x.transpose(0, 3, 1, 2).copy())


@pytest.mark.parametrize("name", MARKED)
def test_logits_features_statistics_and_gradients(name, tmp_path):
    net, (model, params, stats) = both(name, tmp_path)
    x = images(name)

    @jax.jit
    def run(params, x):
        def loss(params):
            (logits, features), after = model.apply(
                params, stats, x, train=True, return_features=True
            )
            return (logits**2).mean(), (logits, features, after)

        gradient, batch = jax.grad(loss, has_aux=True)(params)
        return model.apply(params, stats, x, return_features=True)[0], batch, gradient

    running, batch, gradient = run(params, x)
    with torch.no_grad():
        close(running, net.eval()(to_torch(x)))
    logits, features = net.train()(to_torch(x))
    close(batch[:2], (logits.detach(), features.detach()))
    (logits**2).mean().backward()
    theirs = net.state_dict()
    for module, after in ((batch[2], "stats"), (gradient, "params")):
        for leaf, value in tree.named({after: module}).items():
            number, tensor, form = classifiers.tensor_table(name).tensor(leaf)
            other = net.get_parameter(tensor).grad if after == "params" else theirs[tensor]
            other = other.numpy()
            scale = max(1.0, np.abs(other).max())
            np.testing.assert_allclose(
                form.to_file(np.asarray(value)), other, atol=1e-4 * scale, rtol=0, err_msg=leaf
            )


def close(ours, theirs):
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other.numpy(), atol=1e-4, rtol=0)
