"""Which samples and which layers the filtering methods learn from."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxunlearn import nn, tta
from jaxunlearn.core import tree
from jaxunlearn.core.model import RUNNING, from_nnx
from jaxunlearn.nn.images import vit
from jaxunlearn.tta import deployment, filters, fisher, network
from jaxunlearn.tta.methods import deyo

K, BATCH, KEY = 4, 6, jax.random.key(0)
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, size=(BATCH, K)).astype("float32")
VALID = np.array([True, True, False, True, True, False])
IMAGES = RNG.uniform(size=(BATCH, 8, 8, 3)).astype("float32")


def trains(model, name="sar"):
    """Leaves of norms that the method trains, and all leaves of norms."""
    params, _ = jax.eval_shape(lambda: model.init(KEY))
    masks = tta.METHODS[name]().trainable(params), network.norm_affine(params)
    return [{leaf for leaf, is_in in tree.named(mask).items() if is_in} for mask in masks]


@pytest.mark.parametrize("name", ["sar", "deyo"])
def test_the_fourth_stage_of_resnet_50_stays(name):
    early, all_of_them = trains(nn.resnet50(K), name)
    late = {leaf.split("/")[1] for leaf in all_of_them - early}
    assert late == {"013", "014", "015"} and "norm/scale" in early
    assert len(all_of_them - early) == 2 * (3 * 3 + 1)


@pytest.mark.parametrize(
    "model", [nn.wide_resnet(16, 1), nn.resnext29(K), nn.resnet26_gn(K)], ids=["wrn", "next", "gn"]
)
def test_of_three_stages_all_norms_train(model):
    early, all_of_them = trains(model)
    assert early == all_of_them


@functools.cache
def transformer(n_layers):
    return vit.build(vit.Config((8, 8, 3), 4, 8, n_layers, 2, 8, K, eps=1e-6))


@pytest.mark.parametrize("name", ["sar", "deyo"])
def test_the_last_blocks_and_the_last_norm_of_a_transformer_stay(name):
    """Also where the optimizer decays weights."""
    model = transformer(13)
    params, _ = model.init(KEY)
    params["head"]["kernel"] *= 200
    if name == "deyo":
        settings = {"plpd": -1, "margin": 2.0, "aug_type": "pixel"}
    else:
        settings = {"margin_e0": 2.0, "reset_constant": 0.0}
    method = tta.METHODS[name](weight_decay=0.1, **settings)
    after = tta.run(method, model, params, {}, IMAGES, batch_size=BATCH, key=KEY).params
    for leaf, value in tree.named(after).items():
        changed = np.asarray(value != tree.named(params)[leaf])
        if leaf.startswith("layers/") and leaf.endswith("norm/scale"):
            assert changed.any(axis=1).tolist() == [i not in (9, 10, 11) for i in range(13)]
        elif not leaf.endswith("norm/bias") or leaf == "norm/bias":
            assert not changed.any(), leaf
    early, all_of_them = trains(transformer(3))
    assert all_of_them - early == {"norm/scale", "norm/bias"}


def test_weights_of_a_part_of_a_batch_are_those_of_a_batch_of_that_part():
    average = jnp.array([0.4, 0.3, 0.2, 0.1])
    weights = jax.jit(filters.certainty_and_diversity)
    masked = weights(LOGITS, average, 1 / 3, VALID)
    alone = weights(LOGITS[VALID], average, 1 / 3)
    for part, whole in zip(masked, alone, strict=True):
        np.testing.assert_allclose(part[VALID], whole, atol=1e-6)
        assert not part[~VALID].any()
    corrected = filters.prior_corrected(LOGITS, VALID)
    np.testing.assert_allclose(corrected[VALID], filters.prior_corrected(LOGITS[VALID]), atol=1e-6)


def test_equal_samples_have_equal_weights_and_all_are_kept():
    same = jnp.tile(LOGITS[:1], (BATCH, 1))
    weights, kept = filters.certainty_and_diversity(same, jnp.full(K, 1 / K), 1 / 3)
    assert kept.all() and (weights == 1).all()
    assert np.isfinite(filters.prior_corrected(same)).all()


def test_the_prior_of_equal_classes_keeps_predictions():
    logits = jnp.roll(jnp.eye(K) * 3, 1, axis=0)
    corrected = filters.prior_corrected(logits)
    np.testing.assert_allclose(corrected, logits * corrected.max() / 3, atol=1e-6)


def test_shape_is_destroyed_by_a_window_by_patches_and_by_pixels():
    window = deyo.DeYO(aug_type="occ", occlusion_size=3, row_start=2, column_start=6)
    out = np.asarray(window._destroyed(KEY, jnp.array(IMAGES)))
    means = np.broadcast_to(IMAGES.mean((1, 2), keepdims=True), IMAGES.shape)
    np.testing.assert_allclose(out[:, 2:5, 6:], means[:, 2:5, 6:], atol=1e-6)
    outside = np.ones((8, 8), bool)
    outside[2:5, 6:] = False
    assert np.array_equal(out[:, outside], IMAGES[:, outside])
    assert np.array_equal(deyo.shuffled_patches(KEY, IMAGES, 1), IMAGES)
    patches = deyo.shuffled_patches(KEY, IMAGES, 2)
    for shuffled in (patches, deyo.DeYO(aug_type="pixel")._destroyed(KEY, jnp.array(IMAGES))):
        assert not np.array_equal(shuffled, IMAGES)
        flat = [np.sort(np.asarray(x).reshape(BATCH, -1), axis=1) for x in (shuffled, IMAGES)]
        assert np.array_equal(*flat)


class Tiny(nnx.Module):
    """BatchNorm and a linear layer."""

    def __init__(self, rngs):
        self.norm, self.head = nn.BatchNorm(3), nnx.Linear(3, K, rngs=rngs)

    def __call__(self, x, statistics=RUNNING):
        return self.head(jax.nn.relu(self.norm(x, statistics=statistics)).mean((1, 2)))


@functools.cache
def deployed(n, batch_size):
    model = from_nnx(Tiny)
    params, stats = model.init(KEY)
    source = RNG.uniform(size=(n, 4, 4, 3)).astype("float32"), np.arange(n) % K
    return deployment.deploy(model, params, stats, (4, 4, 3), batch_size, source)


def test_fisher_information_is_a_mean_over_batches_the_last_one_shorter():
    given = deployed(10, 8)
    trained, frozen = tree.partition(given.params, network.norm_affine(given.params))
    told = fisher.of_source(given, trained, frozen, KEY)
    source = fisher.replayed(given.source, 8)
    rows = source.plan(KEY, jnp.arange(2))["rows"]
    parts = [np.asarray(row)[np.asarray(row) >= 0] for row in rows]
    assert [len(part) for part in parts] == [8, 2]

    def loss(params, x):
        logits = given.network.logits(tree.combine(params, frozen), given.stats, x)
        return -jax.nn.log_softmax(logits).max(-1).mean()

    slope = jax.jit(jax.grad(loss))
    grads = [slope(trained, given.source.x[part]) for part in parts]
    wanted = jax.tree.map(lambda *g: sum(x * x for x in g) / 2, *grads)
    for ours, theirs in zip(jax.tree.leaves(told), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-8)


def test_eata_asks_for_a_source_only_where_its_penalty_counts():
    assert tta.METHODS["eata"]().needs_source
    free = tta.METHODS["eata"](fisher_alpha=0.0)
    given = deployed(10, 8)._replace(source=None)
    state, shared = free.start(given, KEY)
    assert not free.needs_source and not shared["shared"]
    assert free.penalty(state.params, shared["shared"]) == 0


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("eta", {"d_margin": -1}),
        ("eata", {"fisher_alpha": -1}),
        ("deyo", {"aug_type": "blur"}),
        ("deyo", {"margin": float("nan")}),
        ("deyo", {"plpd": -2}),
        ("deyo", {"patch_len": 0}),
        ("sar", {"rho": -0.1}),
        ("rpl", {"q": 0}),
        ("roid", {"temperature": 0}),
        ("roid", {"momentum_src": 1.1}),
        ("roid", {"augment": "flip"}),
        ("cmf", {"gamma": -1}),
        ("lame", {"affinity": "cosine"}),
        ("lame", {"knn": 0}),
    ],
)
def test_a_setting_that_is_wrong_is_named(name, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        tta.METHODS[name](**settings)


def test_settings_are_those_published_for_cifar_10():
    wanted = {
        "eta": {"margin_e0": 0.4, "d_margin": 0.4},
        "eata": {"margin_e0": 0.4, "d_margin": 0.4, "fisher_alpha": 1.0},
        "sar": {"margin_e0": 0.4, "rho": 0.05, "reset_constant": 0.2, "nesterov": False},
        "deyo": {"margin": 0.5, "margin_e0": 0.4, "plpd": 0.2, "aug_type": "patch", "patch_len": 4},
        "rpl": {"q": 0.8},
        "roid": {"momentum_src": 0.99, "momentum_probs": 0.9, "temperature": 1 / 3},
        "cmf": {"alpha": 0.99, "gamma": 0.99, "q": 0.005},
        "lame": {"affinity": "rbf", "knn": 5},
    }
    for name, settings in wanted.items():
        method = tta.METHODS[name]()
        assert settings.items() <= dataclasses.asdict(method).items(), name
        assert method.learning_rate == 1e-3
