"""The decoder's own promises; equality with transformers is in tests/parity."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxunlearn.core import adapters, mesh, tree
from jaxunlearn.nn.language import decoder, likelihood
from jaxunlearn.nn.language.generation import generate
from jaxunlearn.nn.layers.rotary import rope_frequencies, rotation
from tests.network_files import TARGETS

CONFIG = decoder.Config(
    "qwen3", 61, 32, 48, 3, 4, 2, 16, 128, tied=False, qkv_bias=False, qk_norm=True, eos=(60,)
)
MODEL = decoder.decoder(CONFIG)
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def params():
    @jax.jit
    def draw():
        params, stats = MODEL.init(KEY)
        assert stats == {}
        # The initial weights are small: larger ones make attention matter.
        return jax.tree.map(lambda x: 5 * x if x.ndim > 2 else x, params)

    return draw()


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(1).integers(0, 60, (3, 20), np.int32)


apply = jax.jit(MODEL.apply, static_argnames=("stop_at", "return_hidden", "remat"))


def test_size_and_names_are_those_of_the_docstring(params):
    c, names = CONFIG, tree.named(params)
    per_layer = c.width * (2 * c.n_heads + 2 * c.n_kv_heads) * c.head_dim
    per_layer += 3 * c.width * c.mlp_width + 2 * c.width + 2 * c.head_dim
    assert tree.size(params) == 2 * c.vocabulary * c.width + c.width + c.n_layers * per_layer
    assert names["layers/q/kernel"].shape == (3, 32, 64)
    assert "layers/q/bias" not in names and names["head/kernel"].shape == (32, 61)


def test_no_token_sees_what_follows_it(params, tokens):
    # By gradients of the embeddings: 0 for later tokens, not 0 for earlier ones.
    table = params["embed"]["table"]
    distinct = np.arange(20)[None]  # each position has another token

    def logit(table):
        out, _ = MODEL.apply(params | {"embed": {"table": table}}, {}, distinct)
        return out[0, 9].sum()

    slope = np.abs(jax.jit(jax.grad(logit))(table)).sum(1)
    assert np.all(slope[10:20] == 0) and np.all(slope[:10] > 0)


def test_rematerialised_layers_give_the_same_gradient(params, tokens):
    def loss(params, remat):
        return jnp.mean(MODEL.apply(params, {}, tokens, remat=remat)[0] ** 2)

    grad = jax.jit(jax.grad(loss), static_argnums=1)
    chex.assert_trees_all_close(grad(params, True), grad(params, False), rtol=1e-5, atol=1e-7)


def test_stopping_early_gives_the_residual_stream(params, tokens):
    whole, _ = apply(params, {}, tokens, return_hidden=True)
    np.testing.assert_allclose(apply(params, {}, tokens, stop_at=3)[0], whole, rtol=1e-6)
    logits, _ = apply(params, {}, tokens)
    of_hidden = jax.jit(decoder.head)(params, whole)
    np.testing.assert_allclose(of_hidden, logits, rtol=1e-5, atol=1e-5)
    first, _ = apply(params, {}, tokens, stop_at=1)
    assert first.shape == (3, 20, 32) and not np.allclose(first, whole)
    # What lies above is not read.
    above = lambda x: np.arange(len(x)).reshape(-1, *[1] * (x.ndim - 1)) > 0  # noqa: E731
    broken = jax.tree.map(lambda x: np.where(above(x), np.float32(np.nan), x), params["layers"])
    np.testing.assert_array_equal(
        apply(params | {"layers": broken}, {}, tokens, stop_at=1)[0], first
    )


def test_bfloat16_computes_norms_softmax_and_logits_in_float32(params, tokens):
    low = decoder.decoder(CONFIG, "bfloat16")
    logits, _ = jax.jit(low.apply)(params, {}, tokens)
    exact, _ = apply(params, {}, tokens)
    assert logits.dtype == jnp.float32
    logits, exact = np.asarray(logits), np.asarray(exact)
    error = np.abs(logits - exact).max() / np.abs(exact).max()
    assert 1e-4 < error < 0.1
    half = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), params)
    assert jax.eval_shape(MODEL.apply, half, {}, tokens)[0].dtype == jnp.float32


def test_texts_in_one_row_do_not_see_each_other(params, tokens):
    first, second = tokens[:1, :9], tokens[1:2, :11]
    row = np.concatenate([first, second], axis=1)
    positions = np.concatenate([np.arange(9), np.arange(11)])[None]
    segments = np.array([[1] * 9 + [2] * 11])
    packed, _ = jax.jit(MODEL.apply)(params, {}, row, positions, segments=segments)
    packed = np.asarray(packed)
    np.testing.assert_allclose(packed[:, :9], apply(params, {}, first)[0], atol=2e-5)
    np.testing.assert_allclose(packed[:, 9:], apply(params, {}, second)[0], atol=2e-5)


def test_responses_of_a_tree_share_a_prefix(params, tokens):
    prompt, a, b = tokens[0, :6], tokens[1, :5], tokens[2, :7]
    row = np.concatenate([prompt, a, b])[None]
    positions = np.concatenate([np.arange(6), np.arange(6, 11), np.arange(6, 13)])[None]
    segments = np.array([[decoder.PREFIX] * 6 + [1] * 5 + [2] * 7])
    joined, _ = jax.jit(MODEL.apply)(params, {}, row, positions, segments=segments)
    for response, place in ((a, slice(6, 11)), (b, slice(11, 18))):
        alone, _ = apply(params, {}, np.concatenate([prompt, response])[None])
        np.testing.assert_allclose(
            np.asarray(joined)[0, place], np.asarray(alone)[0, 6:], atol=2e-5
        )


@pytest.mark.slow
def test_generation_does_not_depend_on_the_other_rows(params):
    masked = np.array([[0, 0, 0, 1, 1], [1, 1, 1, 1, 1]], bool)
    tokens = np.array([[0, 0, 0, 5, 9], [3, 1, 4, 1, 5]], np.int32)
    both = generate(CONFIG, params, tokens, masked, 8)
    one = generate(CONFIG, params, tokens[:1, 3:], masked[:1, 3:], 8)
    np.testing.assert_array_equal(both[0], one[0])
    # Greedy tokens are those of whole forward passes.
    row = tokens[1:]
    for token in np.asarray(both[1]):
        assert np.asarray(apply(params, {}, row)[0])[0, -1].argmax() == token
        row = np.concatenate([row, token[None, None]], axis=1)
        if token == 60:
            break
    drawn = [generate(CONFIG, params, tokens, masked, 8, key=jax.random.key(i)) for i in (1, 1, 2)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (np.asarray(drawn[0]) != np.asarray(drawn[2])).any()


def test_nothing_follows_the_end_of_a_text(params):
    config = dataclasses.replace(CONFIG, eos=tuple(range(61)))  # whatever comes ends it
    prompt = np.array([[3, 4]], np.int32)
    out = generate(config, params, prompt, np.ones((1, 2), bool), 5, pad=7)
    assert np.asarray(out)[0, 1:].tolist() == [7] * 4


def test_sampling_follows_the_distribution(params):
    tokens = np.tile(np.array([[3, 1, 4]], np.int32), (4000, 1))
    mask = np.ones((4000, 3), bool)
    drawn = np.asarray(generate(CONFIG, params, tokens, mask, 1, key=KEY, temperature=0.7))
    p = np.exp(np.asarray(apply(params, {}, tokens[:1])[0])[0, -1].astype(np.float64) / 0.7)
    p /= p.sum()
    counts = np.bincount(drawn[:, 0], minlength=61) / 4000
    assert np.abs(counts - p).max() < 4 * np.sqrt(0.25 / 4000)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(tokens=np.zeros((2, 3))), "integers"),
        (dict(tokens=np.zeros((2, 129), np.int32)), "129 positions; the context .* is 128"),
        (dict(mask=np.ones((2, 4), bool)), r"mask has shape \[2, 4\]"),
        (dict(stop_at=4), "stop_at 4; 0 <= start_at <= stop_at <= 3"),
    ],
)
def test_bad_input_is_named(params, arguments, message):
    arguments = dict(tokens=np.zeros((2, 3), np.int32)) | arguments
    with pytest.raises(ValueError, match=message):
        MODEL.apply(params, {}, arguments.pop("tokens"), **arguments)


def test_a_prompt_longer_than_the_context_is_refused(params):
    with pytest.raises(ValueError, match="slots is 130; the context .* is 128"):
        generate(CONFIG, params, np.zeros((1, 120), np.int32), np.ones((1, 120), bool), 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(model_type="mixtral"), "model_type is 'mixtral'; supported"),
        (dict(hidden_act="gelu"), "hidden_act is 'gelu'"),
        (dict(use_sliding_window=True, sliding_window=4096, max_window_layers=0), "window"),
        (dict(rope_scaling={"rope_type": "yarn", "factor": 4.0}), "rope_type is 'yarn'"),
        (dict(rope_scaling={"rope_type": "llama3", "factor": 4.0}), "low_freq_factor is missing"),
        (
            dict(rope_parameters={"a": {"rope_theta": 1e4}, "b": {"rope_theta": 1e6}}),
            r"rope_parameters differ between \['a', 'b'\]",
        ),
        (dict(num_key_value_heads=3), "no multiple of n_kv_heads 3"),
        (dict(vocab_size=None), "vocab_size is None"),
        (dict(partial_rotary_factor=0.5), "partial_rotary_factor is 0.5"),
    ],
)
def test_a_config_that_is_not_computed_is_refused(change, message):
    config = dict(
        model_type="qwen2",
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=60,
        sliding_window=4096,  # there, and switched off
        use_sliding_window=False,
    )
    decoder.from_hugging_face(config)
    with pytest.raises(ValueError, match=message):
        decoder.from_hugging_face(config | change)


def test_shardings_split_heads_and_widths_and_leave_what_does_not_divide(params):
    attach = lambda params: adapters.attach(params, TARGETS, 2, 4.0, KEY)  # noqa: E731
    adapted = jax.eval_shape(attach, params)
    devices = mesh.make({"data": 1, "model": 1})
    specs = {name: s.spec for name, s in tree.named(decoder.shardings(adapted, devices)).items()}
    assert specs["embed/table"] == P("model", "data")
    assert specs["layers/q/kernel/base"] == P(None, "data", "model")
    assert specs["layers/o/kernel/base"] == P(None, "model", "data")
    assert specs["layers/down/kernel/lora_a"] == P(None, "model", None)
    assert specs["layers/down/kernel/lora_b"] == P(None, None, "data")
    assert specs["norm/scale"] == P(None)


def sequences():
    tokens = np.random.default_rng(3).integers(0, 60, (4, 12), np.int32)
    where = np.array([[3, 4, 5], [6, 7, 0], [2, 0, 0], [0, 0, 0]], np.int32)
    labels = np.array([[1, 2, 3], [4, 5, -1], [6, -1, -1], [-1, -1, -1]], np.int32)

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Batch:
        tokens: jax.Array
        where: jax.Array
        labels: jax.Array

    return Batch(tokens, where, labels)


def slopes(nll):
    """The gradient of a function of the values, and the values."""

    def loss(params):
        values = nll(params)
        return jnp.sum(jnp.sin(values)), values

    return jax.jit(jax.grad(loss, has_aux=True))


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def plain(request, params):
    """Parameters, gradient and values, without chunks."""
    batch = sequences()
    if request.param:
        params = {name: value for name, value in params.items() if name != "head"}

    def nll(params):
        logits, _ = MODEL.apply(params, {}, batch.tokens)
        logp = jax.nn.log_softmax(logits[jnp.arange(4)[:, None], batch.where])
        of_labels = jnp.take_along_axis(logp, jnp.maximum(batch.labels, 0)[..., None], -1)[..., 0]
        return jnp.where(batch.labels >= 0, -of_labels, 0)

    return params, *jax.device_get(slopes(nll)(params))


@pytest.mark.parametrize("limit", [pytest.param(2**24, marks=pytest.mark.slow), 200])
def test_chunked_likelihoods_equal_plain_ones(plain, limit, monkeypatch):
    monkeypatch.setattr(likelihood, "_LOGITS", limit)
    params, expected_slope, expected = plain

    def nll(params):
        return likelihood.token_nll(MODEL, params, sequences())

    slope, values = jax.device_get(slopes(nll)(params))
    for computed in (values, jax.jit(nll)(params)):  # its own forward pass without a gradient
        np.testing.assert_allclose(computed, expected, atol=1e-5)
    pairs = zip(jax.tree.leaves(slope), jax.tree.leaves(expected_slope), strict=True)
    for name, (a, b) in zip(tree.named(params), pairs, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * max(1, float(np.abs(b).max())), err_msg=name)


def test_token_stats_are_those_of_the_distribution(params):
    batch = sequences()
    stats = jax.jit(lambda p: likelihood.token_stats(MODEL, p, batch))(params)
    logits = jax.jit(lambda p: likelihood.response_logits(MODEL, p, batch))(params)
    logits = np.asarray(logits, np.float64)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    p = np.exp(logp)
    valid = np.asarray(batch.labels) >= 0
    mean = (p * logp).sum(-1)
    np.testing.assert_array_equal(stats.valid, valid)
    np.testing.assert_allclose(stats.mean, np.where(valid, mean, 0), atol=1e-5)
    variance = (p * (logp - mean[..., None]) ** 2).sum(-1)
    np.testing.assert_allclose(stats.variance, np.where(valid, variance, 0), atol=1e-4)
    hit = (logits.argmax(-1) == np.asarray(batch.labels)) & valid
    np.testing.assert_array_equal(stats.hit, hit)


def test_kl_and_its_gradient(params):
    hidden, other = np.random.default_rng(0).normal(size=(2, 4, 3, 32)).astype(np.float32)
    mask = sequences().labels >= 0

    def plain(hidden):
        log_p, log_q = (jax.nn.log_softmax(decoder.head(params, x)) for x in (hidden, other))
        return jnp.sum(jnp.where(mask[..., None], jnp.exp(log_q) * (log_q - log_p), 0)) / mask.sum()

    def ours(hidden):
        return likelihood.mean_kl(params, hidden, other, mask)

    both, expected = (jax.jit(jax.value_and_grad(kl)) for kl in (ours, plain))
    (value, slope), (expected_value, expected_slope) = both(hidden), expected(hidden)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    np.testing.assert_allclose(slope, expected_slope, rtol=1e-4, atol=1e-7)
    # Not compiled: as one program, which rounds the two sides apart, it is 5e-8.
    assert float(ours(other)) == 0 and not np.any(np.asarray(both(other)[1]) > 1e-8)
    with pytest.raises(ValueError, match="output layer trains"):
        jax.grad(lambda p: likelihood.mean_kl(p, hidden, other, mask))(params)


def test_a_second_call_compiles_nothing(params, tokens):
    run = jax.jit(chex.assert_max_traces(lambda p, t: MODEL.apply(p, {}, t)[0], n=1))
    run(params, tokens)
    run(params, tokens + 1)


def test_angles_of_far_positions_are_exact_in_a_compiled_program():
    positions = np.array([[1, 4097, 32768, 131071]], np.int32)
    frequencies = rope_frequencies(64, 5e5, None)
    angles = np.asarray(positions, np.float32)[..., None] * frequencies
    cos, sin = jax.jit(lambda at: rotation(at, frequencies))(positions)
    np.testing.assert_allclose(cos, np.cos(angles.astype(np.float64)), atol=1e-6)
    np.testing.assert_allclose(sin, np.sin(angles.astype(np.float64)), atol=1e-6)
