"""What all methods promise, on a network of one convolution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxunlearn import nn, tta
from jaxunlearn.core import tree
from jaxunlearn.core.model import RUNNING, from_nnx

K, BATCH, KEY = 4, 6, jax.random.key(2)
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(15, 8, 8, 3)).astype("float32")  # the last batch has 3
# The source lacks the last class.
SOURCE = RNG.uniform(size=(8, 8, 8, 3)).astype("float32"), np.arange(8) % (K - 1)
FEW = {
    "cotta": {"n_augmentations": 2},
    "rotta": {"memory_size": 8, "update_frequency": 4},
    "adacontrast": {"queue_size": 16},
    "rmt": {"warm_up_samples": 12},
    "deyo": {"patch_len": 2},
}


class Net(nnx.Module):
    """A convolution, BatchNorm and a linear layer."""

    def __init__(self, rngs):
        self.conv = nn.Conv(3, 8, rngs=rngs)
        self.norm = nn.BatchNorm(8)
        self.head = nnx.Linear(8, K, rngs=rngs)

    def __call__(self, x, statistics=RUNNING, return_features=False):
        features = jax.nn.relu(self.norm(self.conv(x), statistics=statistics)).mean((1, 2))
        return (self.head(features), features) if return_features else self.head(features)


MODEL = from_nnx(Net)


@functools.cache
def network(sureness=1.0):
    params, stats = MODEL.init(jax.random.key(0))
    params["head"]["kernel"] = sureness * params["head"]["kernel"]
    return params, stats


def run(name, images=IMAGES, sureness=30.0, source=SOURCE, **settings):
    method = tta.METHODS[name](**FEW.get(name, {}) | settings)
    return tta.run(
        method, MODEL, *network(sureness), images, batch_size=BATCH, key=KEY, source=source
    )


@pytest.mark.parametrize("name", tta.METHODS)
def test_degenerate_images_leave_everything_finite(name):
    """Noise, one image many times, and black ones, in one stream; a class without source."""
    same = np.repeat(IMAGES[:1], BATCH, axis=0)
    out = run(name, np.concatenate([IMAGES[:BATCH], same, np.zeros_like(same), IMAGES[:3]]))
    assert out.logits.shape == (21, K) and np.isfinite(out.logits).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(out.params))


@pytest.mark.parametrize("name", tta.METHODS)
def test_a_batch_that_is_not_full_is_what_is_there(name):
    """Masked statistics, losses and filters of full batches are those without a mask."""
    whole, cut = run(name, sureness=3.0), run(name, IMAGES[:12], sureness=3.0)
    np.testing.assert_allclose(whole.logits[:12], cut.logits, atol=1e-4)


@pytest.mark.parametrize("name", ["eta", "eata", "deyo", "sar"])
def test_where_nothing_is_kept_nothing_moves_from_a_fresh_optimizer(name):
    out = run(name, sureness=0.0)
    assert tree.digest(out.params) == tree.digest(network(0.0)[0])


@pytest.mark.parametrize("name", ["tent", "eta", "sar", "deyo", "rpl", "roid", "cmf", "santa"])
def test_only_scales_and_shifts_of_norms_train(name):
    params, after = network(30.0)[0], run(name).params
    for leaf, before in tree.named(params).items():
        is_norm = leaf.startswith("norm/")
        same = np.array_equal(before, tree.named(after)[leaf])
        assert same or is_norm, leaf


@pytest.mark.parametrize("name", ["rmt", "santa", "eata"])
def test_a_source_that_is_asked_for_and_not_given_is_named(name):
    with pytest.raises(ValueError, match="source is None; .* needs images and labels"):
        run(name, source=None)


@pytest.mark.parametrize("name", ["rmt", "lame"])
def test_a_network_without_features_is_named(name):
    class Bare(Net):
        def __call__(self, x, statistics=RUNNING):
            return super().__call__(x, statistics)

    model = from_nnx(Bare)
    with pytest.raises(ValueError, match="return_features"):
        tta.run(
            tta.METHODS[name](), model, *network(), IMAGES, batch_size=BATCH, key=KEY, source=SOURCE
        )


def test_resets_keep_what_the_published_code_keeps():
    """SAR's momentum and CMF's variance outlive a reset, all else does not."""
    for name, kept in (("sar", "opt_state"), ("cmf", "extra")):
        method = tta.METHODS[name]()
        deployment = tta.deployment.Deployment(
            tta.network.Network(MODEL), *network(30.0), BATCH, (8, 8, 3), K
        )
        initial, shared = method.start(deployment, KEY)
        step = jax.jit(method.step(deployment.network))
        state, _ = step(initial, shared, {"x": jnp.array(IMAGES[:BATCH])}, KEY)
        anew = method.restored(state, initial)
        assert tree.digest(anew.params) == tree.digest(initial.params)
        assert tree.digest(getattr(anew, kept)) != tree.digest(getattr(initial, kept))
