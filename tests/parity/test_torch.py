"""Against PyTorch: the same arithmetic, written by others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import nn
from jaxunlearn.core import losses, optimizers, step

torch = pytest.importorskip("torch", reason="needs the parity extra")


def test_sgd_with_momentum_and_coupled_weight_decay():
    rng = np.random.default_rng(0)
    start = rng.normal(size=(5, 3)).astype(np.float32)
    gradients = rng.normal(size=(20, 5, 3)).astype(np.float32)
    optimizer = optimizers.sgd(0.1, 0.9, 5e-2)
    ours, state = jnp.asarray(start), optimizer.init(jnp.asarray(start))
    theirs = torch.nn.Parameter(torch.tensor(start))
    peer = torch.optim.SGD([theirs], lr=0.1, momentum=0.9, weight_decay=5e-2)
    for gradient in gradients:
        updates, state = optimizer.update(jnp.asarray(gradient), state, ours)
        ours = ours + updates
        theirs.grad = torch.tensor(gradient)
        peer.step()
    np.testing.assert_allclose(ours, theirs.detach(), atol=1e-5)


def test_a_training_step_of_an_mlp():
    from benchmarks.peers import torch_mlp

    model = nn.mlp(64, (64,), 10)
    params, stats = model.init(jax.random.key(0))
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(60, 64)).astype(np.float32), rng.integers(0, 10, 60)
    net = torch_mlp.network(params)
    peer = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9, weight_decay=5e-4)
    loss = torch.nn.functional.cross_entropy(net(torch.tensor(x)), torch.tensor(y))
    loss.backward()
    peer.step()
    optimizer = optimizers.sgd(0.2, 0.9, 5e-4)
    state = step.init_state(params, optimizer, stats)
    take = jax.jit(step.gradient_step(step.supervised(model), optimizer))
    state, metrics = take(state, None, {"x": x, "y": jnp.asarray(y)}, jax.random.key(0))
    np.testing.assert_allclose(metrics["loss"], loss.item(), rtol=1e-6)
    for ours, theirs in zip(state.params["dense"].values(), (net[0], net[2]), strict=True):
        np.testing.assert_allclose(ours["kernel"], theirs.weight.detach().T, atol=1e-6)
        np.testing.assert_allclose(ours["bias"], theirs.bias.detach(), atol=1e-6)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_convolution_and_its_gradients(size):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(4, 7, 6, 3)).astype(np.float32)
    kernel = rng.normal(size=(size, size, 3, 5)).astype(np.float32)
    weights = rng.normal(size=(4, 7, 6, 5)).astype(np.float32)

    def total(x, kernel):
        return jnp.sum(nn.conv(x, kernel) * weights)

    grads = jax.grad(total, argnums=(0, 1))(x, kernel)
    x_t = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    kernel_t = torch.tensor(kernel.transpose(3, 2, 0, 1), requires_grad=True)
    y_t = torch.nn.functional.conv2d(x_t, kernel_t, padding=size // 2)
    (y_t * torch.tensor(weights.transpose(0, 3, 1, 2))).sum().backward()
    np.testing.assert_allclose(
        nn.conv(jnp.asarray(x), jnp.asarray(kernel)),
        y_t.detach().numpy().transpose(0, 2, 3, 1),
        atol=1e-4,
    )
    np.testing.assert_allclose(grads[0], x_t.grad.numpy().transpose(0, 2, 3, 1), atol=1e-4)
    np.testing.assert_allclose(grads[1], kernel_t.grad.numpy().transpose(2, 3, 1, 0), atol=1e-4)


def test_distillation_loss():
    rng = np.random.default_rng(3)
    student, teacher = rng.normal(size=(2, 9, 6)).astype(np.float32)
    ours = losses.kl_divergence(jnp.asarray(student), jnp.asarray(teacher), 4.0).mean()
    theirs = torch.nn.functional.kl_div(
        torch.log_softmax(torch.tensor(student) / 4, 1),
        torch.softmax(torch.tensor(teacher) / 4, 1),
        reduction="batchmean",
    )
    np.testing.assert_allclose(ours, 16 * theirs.item(), rtol=1e-5)
