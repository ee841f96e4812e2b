"""The decoder under S3T: the same exactness, per-token probabilities, groups of one author."""

import functools

import jax
import numpy as np
import pytest

from jaxunlearn.core import adapters, tree
from jaxunlearn.data.text import Sequences
from jaxunlearn.exact import orders, plan, prefixes, service, serving, sliceable
from jaxunlearn.nn.language import decoder, likelihood

CONFIG = decoder.Config("llama", 32, 16, 32, 5, 2, 1, 8, 12)
MODEL, NETWORK = decoder.decoder(CONFIG), sliceable.of_decoder(CONFIG)
RECIPE = plan.StageRecipe(
    rank=2, alpha=4.0, learning_rate=1e-2, epochs=2, batch_size=5, dropout=0.0
)
PLAN = plan.make(2, orders.cyclic(2, 2), 25, recipe=RECIPE, layers_per_slice=2, lane_width=2)
N = 48
AUTHORS = [f"author-{i // 4}" for i in range(N)]


@functools.cache
def base():
    return jax.device_get(MODEL.init(jax.random.key(0))[0])


def examples(seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 32, (N, 12)).astype(np.int32)
    lengths = rng.integers(1, 7, N)
    labels = np.where(np.arange(6) < lengths[:, None], tokens[:, 6:], -1)
    where = np.where(labels >= 0, np.arange(5, 11, dtype=np.int32), 0)
    return {"x": tokens, "where": where, "labels": labels.astype(np.int32)}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("language") / "store"
    ids = [f"question-{i}" for i in range(N)]
    made = service.create(folder, PLAN, CONFIG, base(), ids, examples(), groups=AUTHORS)
    made.train(examples())
    return made


def test_what_is_served_is_the_mean_probability_of_merged_networks(store):
    data = examples()
    got = service.Service(store.folder).predict(**{k: v[:7] for k, v in data.items()})
    sequences = Sequences(*(data[name][:7] for name in ("x", "where", "labels")))
    want = []
    for shard in range(2):
        order = store.order(shard, 0)
        part = prefixes.window(NETWORK, base(), PLAN, 1, 5, jax.random.key(0))
        top = adapters.merge(adapters.load(part, order["adapter"]))["layers"]
        layers = jax.tree.map(lambda a, b: np.concatenate([a[:1], b]), base()["layers"], top)
        nll = likelihood.token_nll(MODEL, base() | {"layers": layers}, sequences)
        want.append(np.where(data["labels"][:7] >= 0, np.exp(-nll), 0))
    assert "heads" not in order
    np.testing.assert_allclose(got, np.mean(want, axis=0), rtol=1e-4, atol=1e-6)


def test_all_of_an_author_goes_and_nothing_of_it_stays(store):
    (author,) = {AUTHORS[0]}
    outcomes = store.delete(store.members([author]))
    assert {(o.shard, o.slice) for o in outcomes} == {(outcomes[0].shard, outcomes[0].slice)}
    assert [o.example for o in outcomes] == [f"question-{i}" for i in range(4)]
    store.repair(examples())
    # The author's texts are not even read.
    changed = examples()
    changed["x"] = np.where(np.array(AUTHORS)[:, None] == author, 0, changed["x"])
    for order in range(2):
        store.verify(changed, (outcomes[0].shard, order, 2))
    with pytest.raises(ValueError, match="group 'nobody' is unknown"):
        store.members(["nobody"])


def test_padding_of_a_language_model_is_not_learned():
    """Places without an example, and labels of -1, have no weight in the loss."""
    data = examples()
    some = {name: leaf[:30] for name, leaf in data.items()}
    places = np.arange(30) % 4
    slices = prefixes.arrange(PLAN, some, places)
    trained = prefixes.train(NETWORK, base(), PLAN, slices, only=[(0, (0,))])
    noise = dict(some, labels=some["labels"].copy())
    slices = prefixes.arrange(PLAN, noise, places)
    slices.examples["x"][~slices.present] = 7
    again = prefixes.train(NETWORK, base(), PLAN, slices, only=[(0, (0,))])
    assert tree.digest(again[0, (0,)]) == tree.digest(trained[0, (0,)])


def test_inputs_that_do_not_fit(store):
    data = examples()
    with pytest.raises(ValueError, match=r"x is int32\[2, 13\]; integers \[n, at most 12\]"):
        store.predict(np.zeros((2, 13), np.int32), where=data["where"], labels=data["labels"])
    with pytest.raises(ValueError, match="examples have no rows of labels"):
        store.repair({"x": data["x"], "where": data["where"]})
    assert serving.mask(PLAN, np.array([0, 1, 2])).tolist() == [
        [0, 0, 0, 0],
        [0, 0, 1, 1],
        [1, 1, 1, 1],
    ]
