"""LoRA as a transformation of parameters: it changes nothing at first, and only adapters train."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxunlearn.core import adapters, step, tree
from jaxunlearn.core.adapters import LowRank

KEY = jax.random.key(0)


@functools.partial(jax.jit, static_argnames="layers")
def weights(key=KEY, layers=3):
    a, b, c = jax.random.split(key, 3)
    return {
        "layers": {
            "q": {
                "kernel": 0.3 * jax.random.normal(a, (layers, 6, 8)),
                "bias": jnp.ones((layers, 8)),
            },
            "o": {"kernel": 0.3 * jax.random.normal(b, (layers, 8, 6))},
        },
        "head": {"kernel": 0.3 * jax.random.normal(c, (6, 5))},
    }


@jax.jit
def forward(params, x):
    def layer(x, own):
        return x + (x @ own["q"]["kernel"] + own["q"]["bias"]) @ own["o"]["kernel"], None

    x, _ = jax.lax.scan(layer, x, params["layers"])
    return x @ params["head"]["kernel"]


X = jax.random.normal(jax.random.key(1), (4, 6))
TARGETS = ("layers/[qo]/kernel", "head/kernel")


@jax.jit
def filled(params, key=KEY):
    """The adapters of a network with other values than 0 in them."""
    own, rest = adapters.split(params)
    leaves, structure = jax.tree.flatten(own)
    keys = jax.random.split(key, len(leaves))
    leaves = [0.1 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return tree.combine(jax.tree.unflatten(structure, leaves), rest)


def test_a_fresh_adapter_changes_no_bit():
    params = weights()
    adapted = adapters.attach(params, TARGETS, 2, 4.0, KEY)
    np.testing.assert_array_equal(forward(params, X), forward(adapted, X))
    chex.assert_trees_all_equal(adapters.base(adapted), params)


@given(st.sampled_from([1, 3, 5]), st.floats(0.1, 64), st.booleans(), st.integers(0, 2**30))
def test_merged_equals_unmerged(rank, alpha, stabilized, seed):
    key = jax.random.key(seed)
    adapted = adapters.attach(weights(key), TARGETS, rank, alpha, key, rank_stabilized=stabilized)
    assert adapted["head"]["kernel"].scale == pytest.approx(
        alpha / (rank**0.5 if stabilized else rank), rel=1e-6
    )
    adapted = filled(adapted, key)
    merged, unmerged = forward(jax.jit(adapters.merge)(adapted), X), forward(adapted, X)
    np.testing.assert_allclose(merged, unmerged, atol=1e-5 * float(jnp.abs(unmerged).max()))


def test_an_adapter_upon_an_adapter_is_as_if_the_first_were_merged():
    first = filled(adapters.attach(weights(), TARGETS, 2, 4.0, KEY))
    second = adapters.attach(first, TARGETS, 3, 6.0, jax.random.key(5))
    np.testing.assert_array_equal(forward(first, X), forward(second, X))
    names = list(tree.named(adapters.split(second)[0]))
    assert all("base" not in name for name in names) and len(names) == 6
    second = filled(second, jax.random.key(6))
    on_merged = adapters.attach(adapters.merge(first), TARGETS, 3, 6.0, jax.random.key(5))
    on_merged = adapters.load(on_merged, adapters.split(second)[0])
    np.testing.assert_allclose(forward(on_merged, X), forward(second, X), rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_the_dense_product():
    adapted = filled(adapters.attach(weights(), TARGETS, 2, 4.0, KEY))
    own, rest = adapters.split(adapted)

    def thin(own, x):
        return jnp.sum(jnp.sin(forward(tree.combine(own, rest), x)))

    def dense(own, x):
        return jnp.sum(jnp.sin(forward(adapters.merge(tree.combine(own, rest)), x)))

    gradients = (jax.jit(jax.grad(f, (0, 1)))(own, X) for f in (thin, dense))
    for ours, theirs in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * float(jnp.abs(theirs).max()))


def test_the_scale_has_a_gradient_and_vmap_equals_single_runs():
    adapted = filled(adapters.attach(weights(), TARGETS, 2, 4.0, KEY))
    on = jnp.array([1.0, 0.0, 1.0])
    layers = {"layers": adapted["layers"], "head": adapters.base(adapted["head"])}

    @jax.jit
    def loss(on):
        return jnp.sum(jnp.cos(forward(adapters.switch(layers, on), X)))

    slope = jax.jit(jax.grad(loss))(on)
    shift = 1e-2 * jnp.eye(3)
    numeric = jax.jit(jax.vmap(lambda d: (loss(on + d) - loss(on - d)) / 2e-2))(shift)
    np.testing.assert_allclose(slope, numeric, rtol=0.05, atol=0.02)
    own, rest = adapters.split(adapted)
    many = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), own)
    grad = jax.jit(jax.grad(lambda own: jnp.sum(forward(tree.combine(own, rest), X) ** 2)))
    together = jax.jit(jax.vmap(grad))(many)
    for i in range(2):
        alone = grad(jax.tree.map(lambda x, i=i: x[i], many))
        chex.assert_trees_all_close(jax.tree.map(lambda x, i=i: x[i], together), alone, rtol=1e-4)


def test_a_traced_mask_switches_layers_off_in_one_program():
    adapted = filled(adapters.attach(weights(), ("layers/q/kernel",), 2, 4.0, KEY))
    run = jax.jit(lambda on: forward(adapters.switch(adapted, on), X))
    np.testing.assert_array_equal(run(jnp.zeros(3)), forward(adapters.base(adapted), X))
    np.testing.assert_allclose(run(jnp.ones(3)), forward(adapted, X), rtol=1e-6)
    half = run(jnp.array([1.0, 0.0, 0.0]))
    assert not np.allclose(half, run(jnp.ones(3))) and run._cache_size() == 1


def test_only_the_adapters_train():
    adapted = adapters.attach(weights(), TARGETS, 2, 4.0, KEY)
    own, base = adapters.split(adapted)

    def objective(params, stats, shared, batch, key):
        return jnp.mean(forward(tree.combine(params, shared), batch) ** 2), (stats, {})

    optimizer = optax.adamw(1e-2, weight_decay=0.1)
    state = step.init_state(own, optimizer)
    take = jax.jit(step.gradient_step(objective, optimizer))
    after, _ = take(state, base, X, KEY)
    after, _ = take(after, base, X, KEY)
    assert tree.size(after.opt_state) == 2 * tree.size(own) + 1
    chex.assert_trees_all_equal(
        adapters.base(tree.combine(after.params, base)), adapters.base(adapted)
    )
    for name, leaf in tree.named(after.params).items():
        assert np.any(leaf != tree.named(own)[name]), name
    assert all(name.rpartition("/")[2] in ("lora_a", "lora_b") for name in tree.named(own))


def test_kernels_draw_by_their_name_not_by_what_else_is_adapted():
    some = adapters.attach(weights(), ("layers/q/kernel",), 2, 4.0, KEY)
    more = adapters.attach(weights(), TARGETS, 2, 4.0, KEY)
    for one in (some, more):
        assert isinstance(one["layers"]["q"]["kernel"], LowRank)
    np.testing.assert_array_equal(
        some["layers"]["q"]["kernel"].lora_a, more["layers"]["q"]["kernel"].lora_a
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(targets="nothing"), "targets: 'nothing' matches no parameter"),
        (dict(targets="layers/q/bias", rank=4), "allows 1 to"),
        (dict(rank=0), "rank is 0; layers/"),
        (dict(rank=7), "rank is 7; layers/.* allows 1 to 6"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    arguments = dict(targets="layers/[qo]/kernel", rank=2, alpha=4.0, key=KEY) | change
    with pytest.raises(ValueError, match=message):
        adapters.attach(weights(), **arguments)


def test_an_adapter_of_another_network_is_refused():
    adapted = adapters.attach(weights(), TARGETS, 2, 4.0, KEY)
    for other, message in [
        (adapters.attach(weights(), TARGETS[:1], 2, 4.0, KEY), "only in the network"),
        (adapters.attach(weights(), TARGETS, 3, 4.0, KEY), r"needs \[6, 2\]"),
        (adapters.attach(weights(layers=2), TARGETS, 2, 4.0, KEY), r"needs \[3, "),
    ]:
        with pytest.raises(ValueError, match=message):
            adapters.load(adapted, adapters.split(other)[0])


def test_dropout_is_of_what_adapters_read_and_right_on_average():
    params = adapters.attach(weights(), r".*/kernel", 2, 4.0, KEY)
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    x = jax.random.normal(jax.random.key(1), (4, 6))
    np.testing.assert_array_equal(forward(adapters.drop(params, 0.0, KEY), x), forward(params, x))
    kernel = jax.tree.map(lambda leaf: leaf[0], params["layers"]["q"]["kernel"])
    one = adapters.drop({"q": kernel}, 0.25, KEY)["q"]
    ones = jnp.ones((20_000, 6))
    dropped, plain = ones @ one, ones @ kernel
    base = ones @ kernel.base
    error = (dropped - base).std(0) / len(ones) ** 0.5
    assert (jnp.abs((dropped - plain).mean(0)) < 4 * error).all()
    # The very elements: what is kept is divided by what is kept on average.
    kept = jax.random.bernoulli(one.key, 0.75, ones.shape)
    want = base + (kept / 0.75) @ kernel.lora_a @ kernel.lora_b * kernel.scale
    np.testing.assert_allclose(dropped, want, rtol=1e-5)
    # Layers of a stack, and kernels, draw on their own; without an adapter nothing changes.
    some = adapters.drop(params, 0.25, KEY)
    keys = jnp.stack([*some["layers"]["q"]["kernel"].key, *some["layers"]["o"]["kernel"].key])
    assert len(np.unique(jax.random.key_data(keys), axis=0)) == 6
    assert adapters.drop(weights(), 0.25, KEY)["head"]["kernel"].shape == (6, 5)
    with pytest.raises(ValueError, match="rate is 1"):
        adapters.drop(params, 1.0, KEY)
