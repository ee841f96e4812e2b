"""What methods remember: RoTTA's memory, AdaContrast's queue and bank, prototypes, a projector."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from jaxunlearn import nn, tta
from jaxunlearn.core.model import RUNNING, from_nnx
from jaxunlearn.tta import banks, memory, projector, prototypes
from jaxunlearn.tta._run import deploy
from jaxunlearn.tta.methods import cotta

K, SIZE = 3, 7
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


@jax.jit
def remembered(labels, unsure):
    """The memory after images came, one after the other."""
    instances = memory.Instance(jnp.arange(len(labels)), labels, unsure)
    add = lambda held, new: (memory.add(held, new, K, 1.0, 2.0), None)  # noqa: E731
    return jax.lax.scan(add, memory.empty(SIZE), instances)[0]


def by_lists(labels, unsure):
    """The same with a list [image, label, uncertainty, age], oldest first."""
    held = []

    def score(entry):
        return 1 / (1 + math.exp(-entry[3] / SIZE)) + 2 * entry[2]

    for i, (label, u) in enumerate(zip(labels.tolist(), unsure.tolist(), strict=True)):
        counts = [sum(entry[1] == k for entry in held) for k in range(K)]
        rivals = [entry for entry in held if entry[1] == label]
        if counts[label] < SIZE / K:
            full = len(held) == SIZE
            rivals = [entry for entry in held if full and counts[entry[1]] == max(counts)]
        new, worst = [i, label, u, 0], max(rivals, key=score, default=None)
        if worst is None or score(worst) > score(new):
            held = [entry for entry in held if entry is not worst] + [new]
        held = [[*entry[:3], entry[3] + 1] for entry in held]
    return held


@given(st.integers(0, 2**32 - 1))
def test_the_memory_is_that_of_lists(seed):
    rng = np.random.default_rng(seed)
    labels = np.minimum(rng.geometric(0.6, 40) - 1, K - 1).astype("int32")
    unsure = rng.uniform(size=40).astype("float32")
    held = jax.device_get(remembered(labels, unsure))
    ours = sorted(zip(*(x[held.filled] for x in held[:4]), strict=True))
    theirs = sorted(by_lists(labels, unsure))
    assert [(i, k, age) for i, k, _, age in ours] == [(i, k, age) for i, k, _, age in theirs]


def test_of_equal_images_the_newest_stay():
    held = remembered(np.zeros(40, "int32"), np.full(40, 0.5, "float32"))
    assert sorted(np.asarray(held.image)[np.asarray(held.filled)]) == [37, 38, 39]  # 7 / 3 and one


@pytest.mark.parametrize("size", [5, 9])
def test_the_queue_replaces_the_oldest_rows(size):
    """Rows that do not count are not written; of more than fit, the last ones are."""
    queue = banks.random_queue(KEY, size, 2, K)
    written = []
    for batch in range(4):
        labels = jnp.arange(6) + 10 * batch
        kept = np.arange(6) != batch
        rows = jnp.stack([labels, labels], axis=1).astype("float32")
        queue = banks.enqueue(queue, rows, labels, kept)
        written += labels[kept].tolist()
    assert sorted(queue.labels.tolist()) == sorted(written[-size:])
    np.testing.assert_array_equal(queue.features[:, 0], queue.labels)


def test_the_bank_grows_by_batches_and_neighbours_are_its_nearest_rows():
    bank = banks.empty_bank(8, 6, 2, K)
    rows = RNG.normal(size=(4, 6, 2)).astype("float32")
    p = RNG.dirichlet(np.ones(K), (4, 6)).astype("float32")
    lengths = []
    for features, probabilities in zip(rows, p, strict=True):
        bank = banks.store(bank, 8, features, probabilities, np.arange(6) < 5)
        lengths.append(int(bank.length))
    assert lengths == [5, 10, 10, 10]
    features, filled = bank.features[:10], bank.probabilities[:10]
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    nearest = np.argsort(-unit(rows[0]) @ unit(features).T, axis=1)[:, :3]
    ours = banks.of_neighbours(bank, rows[0], 3)
    np.testing.assert_allclose(ours, np.asarray(filled)[nearest].mean(1), atol=1e-6)
    all_of_them = banks.of_neighbours(bank, rows[0], 12)
    np.testing.assert_allclose(all_of_them[0], np.asarray(filled).mean(0), atol=1e-6)


class Means(nnx.Module):
    """Features are the means of channels."""

    def __init__(self, rngs):
        self.norm = nn.BatchNorm(3)
        self.head = nnx.Linear(3, K, rngs=rngs)

    def __call__(self, x, statistics=RUNNING, return_features=False):
        features = self.norm(x, statistics=statistics).mean((1, 2))
        return (self.head(features), features) if return_features else self.head(features)


MODEL = from_nnx(Means)
PARAMS, STATS = MODEL.init(KEY)


def test_prototypes_are_means_of_classes_and_absent_ones_are_never_nearest():
    x, y = RNG.uniform(size=(6, 2, 2, 3)).astype("float32"), np.array([0, 0, 2, 2, 2, 0])
    of_source = prototypes.of_source(deploy(MODEL, PARAMS, STATS, (2, 2, 3), 6, (x, y)), KEY)
    features = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5)
    for k in (0, 2):
        mean = features[y == k].mean((0, 1, 2))
        np.testing.assert_allclose(of_source.means[k], mean, atol=1e-5)
    assert of_source.present.tolist() == [True, False, True]
    nearest = of_source.nearest(jnp.zeros((2, 3)))
    np.testing.assert_array_equal(nearest, of_source.means[jnp.array([0, 0])])


def test_a_network_without_features_is_named():
    plain = from_nnx(lambda rngs: nn.BatchNorm(3))
    params, stats = plain.init(KEY)
    x = RNG.uniform(size=(4, 2, 2, 3)).astype("float32")
    with pytest.raises(ValueError, match="features"):
        prototypes.n_features(deploy(plain, params, stats, (2, 2, 3), 4, (x, np.zeros(4, int))))


def test_projections():
    arrays = [np.ones(shape) for shape in ((3, 5), (5,), (5, 2), (2,))]
    heads = projector.start(projector.setting(arrays), 3, KEY)
    np.testing.assert_allclose(projector.project(heads, jnp.ones((4, 3))), 21)
    assert projector.project(projector.start(None, 3, KEY), jnp.ones(3)).shape == (3,)
    drawn = projector.start("random", 3, KEY)
    assert drawn["w2"].shape == (128, 128) and abs(drawn["b2"]).max() <= 128**-0.5
    assert hash(tta.METHODS["rmt"](projection=arrays)) != hash(tta.METHODS["rmt"]())
    with pytest.raises(ValueError, match="projection reads 3 features; the network has 4"):
        projector.start(projector.setting(arrays), 4, KEY)
    for wrong in ("randon", arrays[:3], arrays[::-1]):
        with pytest.raises(ValueError, match="projection is"):
            tta.METHODS["santa"](projection=wrong)


def test_restoration_takes_entries_of_the_source():
    now, source = {"a": jnp.zeros((200, 50))}, {"a": jnp.ones((200, 50))}
    assert cotta.restored(KEY, now, source, 1)["a"].all()
    assert not cotta.restored(KEY, now, source, 0)["a"].any()
    np.testing.assert_allclose(cotta.restored(KEY, now, source, 0.01)["a"].mean(), 0.01, rtol=0.3)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("cotta", {"threshold": 1.5}),
        ("cotta", {"n_augmentations": 0}),
        ("rotta", {"nu": -0.1}),
        ("rotta", {"memory_size": 0}),
        ("rmt", {"lambda_src": -1}),
        ("rmt", {"ema": 1.2}),
        ("rmt", {"warm_up_samples": 2.5}),
        ("santa", {"temperature": 0}),
        ("adacontrast", {"queue_size": 0}),
        ("adacontrast", {"augment": "default views"}),
    ],
)
def test_settings_out_of_range_are_named(name, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        tta.METHODS[name](**settings)
