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
SIDES = {"resnext29-4x32": 32, "resnet50": 64}
# 53 BatchNorms by few images lose digits, in PyTorch as much as here: both are as far from float64.
FEATURES = {"resnet50": 5e-4}
# A ReLU whose input is 0 but for rounding has one gradient or the other.
GRADIENT = {"resnext29-4x32": 1e-2, "resnet50": 5e-2}
MARKED = [pytest.param(name, marks=[slow] * (name in HEAVY)) for name in NETWORKS]


def both(name, folder):
    net = peers.drawn(NETWORKS[name]())
    safetensors.save_file(net.state_dict(), folder / "net.safetensors")
    return net, classifiers.from_pretrained(folder / "net.safetensors", name, n_classes=7)


def images(name, n=6):
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
    close(batch[:1], (logits.detach(),))
    close(batch[1:2], (features.detach(),), FEATURES.get(name, 1e-4))
    (logits**2).mean().backward()
    for tensor, after in in_file(name, {"stats": batch[2]}).items():
        np.testing.assert_allclose(after, net.get_buffer(tensor), atol=1e-4, rtol=0, err_msg=tensor)
    errors, norms = 0.0, 0.0
    for tensor, ours in in_file(name, {"params": gradient}).items():
        theirs = net.get_parameter(tensor).grad.numpy()
        errors, norms = errors + ((ours - theirs) ** 2).sum(), norms + (theirs**2).sum()
    assert errors < GRADIENT.get(name, 1e-4) ** 2 * norms


def in_file(name, trees):
    """Leaves by the names and in the layout of PyTorch."""
    table = classifiers.tensor_table(name)
    places = ((table.tensor(leaf), value) for leaf, value in tree.named(trees).items())
    return {tensor: form.to_file(np.asarray(value)) for (_, tensor, form), value in places}


def close(ours, theirs, atol=1e-4):
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other.numpy(), atol=atol, rtol=0)
