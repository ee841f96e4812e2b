"""Decoders and their files against Hugging Face's transformers, in PyTorch."""

import dataclasses
import json
import os
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.nn.language import decoder, weights
from jaxunlearn.nn.layers.rotary import rope_frequencies

torch = pytest.importorskip("torch")
with warnings.catch_warnings():  # of the packages that transformers imports
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")

TOLERANCE = 2e-5  # of the largest logit
COMMON = {
    "vocab_size": 96,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "max_position_embeddings": 16384,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA_3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def sizes(heads, kv, head_dim):
    """Width, heads and key/value heads, head_dim being width / heads."""
    return {
        "hidden_size": heads * head_dim,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
    }


# name: config, as (model_type, its arguments)
NETWORKS = {
    "llama": ("llama", sizes(4, 4, 16) | {"rms_norm_eps": 1e-5, "rope_theta": 5e4}),
    "llama-scaled": (
        "llama",
        sizes(4, 2, 16) | {"tie_word_embeddings": True, "rope_theta": 5e5, "rope_scaling": LLAMA_3},
    ),
    "llama-biased": ("llama", sizes(4, 2, 16) | {"attention_bias": True, "mlp_bias": True}),
    "qwen2": ("qwen2", sizes(7, 1, 8) | {"tie_word_embeddings": True, "rope_theta": 1e6}),
    "qwen2-untied": ("qwen2", sizes(4, 2, 16) | {"sliding_window": 8}),
    "qwen3": ("qwen3", sizes(4, 2, 8) | {"head_dim": 32, "rope_theta": 1e6}),
    "qwen3-tied": ("qwen3", sizes(7, 1, 8) | {"head_dim": 16, "tie_word_embeddings": True}),
}
CLASSES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
}


def build(name, seed=0):
    """A small network of transformers whose every weight is random, biases and norms too."""
    family, options = NETWORKS[name]
    make_config, make = CLASSES[family]
    torch.manual_seed(seed)
    model = make(make_config(**COMMON, **options)).eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            scale = 0.1 if value.ndim == 2 else 0.5
            value.normal_(1.0 if "norm" in key else 0.0, scale)
    return model


QUICK = ("llama-scaled", "llama-biased", "qwen2-untied", "qwen3-tied")  # all features between them
ALL = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]


@pytest.fixture(scope="module", params=ALL)
def both(request, tmp_path_factory):
    """The network in transformers, and read from what that saved."""
    theirs = build(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    return theirs, decoder.from_pretrained(folder)


def logits(theirs, tokens, **inputs):
    inputs = {name: torch.as_tensor(value) for name, value in inputs.items()}
    with torch.no_grad():
        return theirs(torch.as_tensor(tokens), use_cache=False, **inputs).logits.numpy()


def run(ours):
    return jax.jit(ours.apply)


def close(ours, theirs):
    difference = np.abs(np.asarray(ours) - theirs).max()
    assert difference <= TOLERANCE * np.abs(theirs).max(), difference


def some_tokens(shape, seed=0):
    return np.random.default_rng(seed).integers(3, 96, shape).astype(np.int64)


def test_logits(both):
    theirs, ours = both
    tokens = some_tokens((2, 24))
    close(run(ours)(ours.params, tokens.astype(np.int32)), logits(theirs, tokens))


@pytest.mark.parametrize("positions", ["long", "strided", "gapped"])
def test_positions(both, positions):
    theirs, ours = both
    tokens = some_tokens((2, 24))
    row = {
        "long": 6000 + np.arange(24),
        "strided": 11 * np.arange(24),
        "gapped": np.concatenate([np.arange(10), 3000 + np.arange(14)]),
    }[positions]
    row = np.broadcast_to(row, tokens.shape).copy()
    got = run(ours)(ours.params, tokens.astype(np.int32), row.astype(np.int32))
    # Without a mask, transformers takes a gap for the beginning of another sequence.
    close(got, logits(theirs, tokens, position_ids=row, attention_mask=np.ones_like(row)))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(both, side):
    """Padded rows give what each gives alone, and what transformers gives for the padded batch."""
    theirs, ours = both
    tokens = some_tokens((3, 20))
    lengths = np.array([20, 13, 5])
    real = np.arange(20) < lengths[:, None]
    real = real[:, ::-1].copy() if side == "left" else real
    positions = np.maximum(np.cumsum(real, 1) - 1, 0)
    got = run(ours)(ours.params, tokens.astype(np.int32), mask=real)
    want = logits(theirs, tokens, attention_mask=real.astype(np.int64), position_ids=positions)
    assert np.isfinite(got).all()
    close(np.asarray(got)[real], want[real])
    for i, length in enumerate(lengths):
        close(np.asarray(got)[i][real[i]], logits(theirs, tokens[i : i + 1][:, real[i]])[0])
        assert real[i].sum() == length


def test_cache(both):
    """A prompt of unequal lengths read at once, then token by token, gives the same logits."""
    theirs, ours = both
    tokens = some_tokens((2, 16))
    real = np.ones((2, 16), bool)
    real[1, :4] = False
    positions = np.maximum(np.cumsum(real, 1) - 1, 0)
    want = logits(theirs, tokens, attention_mask=real.astype(np.int64), position_ids=positions)
    step = jax.jit(
        lambda params, cache, tokens, real: ours.model.apply(
            params, {}, tokens, mask=real, cache=cache
        )[0]
    )
    cache = decoder.init_cache(ours.config, 2, 20)
    parts = []
    for start, stop in [(0, 10), *((i, i + 1) for i in range(10, 16))]:
        own = jnp.asarray(tokens[:, start:stop], jnp.int32)
        part, cache = step(ours.params, cache, own, real[:, start:stop])
        parts.append(part)
    close(np.concatenate(parts, 1)[real], want[real])


def test_hidden_states(both):
    theirs, ours = both
    tokens = some_tokens((2, 12))
    with torch.no_grad():
        states = theirs(torch.as_tensor(tokens), output_hidden_states=True).hidden_states
    apply = jax.jit(ours.model.apply, static_argnames=("stop_at", "return_hidden"))
    for layer in range(1, ours.config.n_layers + 1):
        got = apply(ours.params, {}, tokens.astype(np.int32), stop_at=layer)[0]
        close(got, states[layer].numpy())
    got = apply(ours.params, {}, tokens.astype(np.int32), return_hidden=True)[0]
    close(got, states[-1].numpy())
    close(decoder.head(ours.params, got), logits(theirs, tokens))


def state_of(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sharded", [False, True])
def test_round_trip_through_their_files_and_ours(both, tmp_path, dtype, sharded):
    """Theirs, read by us, saved by us, read by them: the same bits and the same config."""
    theirs = CLASSES[both[1].config.family][1](both[0].config).to(getattr(torch, dtype))
    theirs.load_state_dict(both[0].state_dict())
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="30KB" if sharded else "1GB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists() == sharded
    ours = decoder.from_pretrained(tmp_path / "theirs", dtype=dtype)
    assert ours.config == both[1].config
    size = 30_000 if sharded else 10**9
    weights.save(tmp_path / "ours", ours.config, ours.params, max_shard_bytes=size)
    again, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", dtype="auto", output_loading_info=True
    )
    assert not any(report.values()), report
    assert type(again) is type(theirs)
    want, got = state_of(theirs), state_of(again)
    assert list(got) == list(want)
    for name, value in want.items():
        assert got[name].dtype == value.dtype and torch.equal(got[name], value), name
    if dtype == "float32":
        tokens = some_tokens((2, 12))
        np.testing.assert_array_equal(logits(again, tokens), logits(theirs, tokens))


def test_bfloat16_logits(both, tmp_path):
    """In bfloat16 both round at the same places; what is left is the order of sums."""
    both[0].save_pretrained(tmp_path)
    # Converted after it was built, it would hold rounded frequencies.
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    ours = decoder.from_pretrained(tmp_path, dtype="bfloat16")
    tokens = some_tokens((2, 24))
    with torch.no_grad():
        want = theirs(torch.as_tensor(tokens)).logits.float().numpy()
    got = np.asarray(run(ours)(ours.params, tokens.astype(np.int32)))
    assert np.abs(got - want).mean() <= 5e-3 * np.abs(want).max()


@pytest.mark.parametrize("head_dim", [16, 64])
@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_scaled_frequencies(head_dim, factor):
    """Each of the three branches, beside transformers and beside the formula."""
    config = transformers.LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        max_position_embeddings=131072,
        rope_parameters=LLAMA_3
        | {"rope_theta": 5e5, "factor": factor, "original_max_position_embeddings": 8192},
    )
    want, attention = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    assert attention == 1.0
    scaling = decoder.RopeScaling(factor, 1.0, 4.0, 8192)
    got = np.asarray(rope_frequencies(head_dim, 5e5, scaling))
    np.testing.assert_allclose(got, want.numpy(), rtol=2e-7)
    unscaled = 1.0 / 5e5 ** (torch.arange(0, head_dim, 2).float() / head_dim)
    np.testing.assert_array_equal(rope_frequencies(head_dim, 5e5, None), unscaled.numpy())
    plain = 5e5 ** (-np.arange(0, head_dim, 2) / head_dim)
    wavelength = 2 * np.pi / plain
    short, long = wavelength < 8192 / 4, wavelength > 8192
    between = ~short & ~long
    assert short.any() and long.any() and (between.any() or head_dim == 16)
    np.testing.assert_allclose(got[short], plain[short], rtol=2e-6)
    np.testing.assert_allclose(got[long], plain[long] / factor, rtol=2e-6)
    share = (8192 / wavelength - 1) / 3
    middle = (1 - share) * plain / factor + share * plain
    np.testing.assert_allclose(got[between], middle[between], rtol=2e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_config_in_both_forms(name):
    """`rope_parameters`, as transformers 5 writes them, and the two entries of before."""
    config = build(name).config
    nested = json.loads(config.to_json_string(use_diff=False))
    assert "rope_theta" in nested["rope_parameters"] and "rope_theta" not in nested
    old = dict(nested)
    rope = dict(old.pop("rope_parameters"))
    old["rope_theta"] = rope.pop("rope_theta")
    old["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    ours = decoder.from_hugging_face(nested)
    assert decoder.from_hugging_face(old) == ours
    if old["rope_scaling"]:
        older = rope | {"type": rope["rope_type"]}
        del older["rope_type"]
        assert decoder.from_hugging_face(old | {"rope_scaling": older}) == ours
        assert ours.rope_scaling == decoder.RopeScaling(32.0, 1.0, 4.0, 64)
    options = NETWORKS[name][1]
    assert ours.rope_theta == options.get("rope_theta", 1e4)
    assert ours.tied == options.get("tie_word_embeddings", False)


def test_splits_of_byte_level_tokenizers():
    from transformers.integrations.gguf import gguf_tokenizer_mapping as theirs

    from jaxunlearn.nn.language import tokenizers as _tokenizers

    for name, pattern in _tokenizers._SPLITS.items():
        assert theirs.GGUF_PRE_TOKENIZER_SPLITS[name] == pattern


# A real model


@pytest.fixture(scope="module")
def smollm2():
    """SmolLM2-135M-Instruct, read by us, and in transformers with independently read weights."""
    file = os.environ.get("SMOLLM2_GGUF")
    if not file or not os.path.exists(file):
        pytest.skip("needs SmolLM2-135M-Instruct as GGUF; set SMOLLM2_GGUF to its path")
    return decoder.from_pretrained(file), independent(file)


def independent(file):
    """By the reader of the package gguf, put into place by hand."""
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(file)
    tensors = {one.name: one for one in reader.tensors}
    field = {name: one.contents() for name, one in reader.fields.items() if "ggml" not in name}
    heads, kv = field["llama.attention.head_count"], field["llama.attention.head_count_kv"]
    config = transformers.LlamaConfig(
        vocab_size=field["llama.vocab_size"],
        hidden_size=field["llama.embedding_length"],
        intermediate_size=field["llama.feed_forward_length"],
        num_hidden_layers=field["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=kv,
        max_position_embeddings=field["llama.context_length"],
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1e5},
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }

    def value(name):
        one = tensors.pop(name)
        out = torch.tensor(gguf.quants.dequantize(one.data, one.tensor_type))
        for part, n in {".attn_q.": heads, ".attn_k.": kv}.items():
            if part in name:  # row 2 j + s of a head goes to row s h / 2 + j
                half = out.shape[0] // n // 2
                order = [
                    head * 2 * half + 2 * j + side
                    for head in range(n)
                    for side in range(2)
                    for j in range(half)
                ]
                out = out[order]
        return out

    state = {
        "model.embed_tokens.weight": value("token_embd.weight"),
        "model.norm.weight": value("output_norm.weight"),
    }
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    for i in range(config.num_hidden_layers):
        for theirs, own in names.items():
            state[f"model.layers.{i}.{theirs}.weight"] = value(f"blk.{i}.{own}.weight")
    assert not tensors
    model.load_state_dict(state, strict=True)
    return model


@pytest.mark.weights
def test_smollm2(smollm2):
    ours, theirs = smollm2
    config = dataclasses.replace(ours.config, bos=None, eos=())
    want = decoder.from_hugging_face(json.loads(theirs.config.to_json_string(use_diff=False)))
    assert config == dataclasses.replace(want, bos=None, eos=())
    assert (ours.config.bos, ours.config.eos) == (1, (2,))
    text = "Machine unlearning removes the influence of chosen examples from a trained network."
    tokens = np.array([ours.tokenizer.encode(text).ids])
    got = np.asarray(run(ours)(ours.params, jnp.asarray(tokens, jnp.int32)))
    difference = np.abs(got - logits(theirs, tokens)).max()
    assert difference < 2e-2


@pytest.mark.weights
@pytest.mark.slow
def test_smollm2_continues_a_text(smollm2):
    """30 greedy tokens, one by one through the cache, are those of transformers."""
    ours, theirs = smollm2
    prompt = (
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
        "The capital"
    )
    tokens = ours.tokenizer.encode(prompt).ids
    with torch.no_grad():
        want = theirs.generate(
            torch.tensor([tokens]),
            attention_mask=torch.ones(1, len(tokens), dtype=torch.int64),
            max_new_tokens=30,
            min_new_tokens=30,
            do_sample=False,
            pad_token_id=2,
            eos_token_id=None,
        )[0, len(tokens) :].tolist()
    # The weights are an argument: as constants they would be compiled in.
    step = jax.jit(
        lambda params, cache, tokens: ours.model.apply(params, {}, tokens, cache=cache)[0]
    )
    cache = decoder.init_cache(ours.config, 1, len(tokens) + 30)
    got, new = [], jnp.asarray([tokens])
    for _ in range(30):
        out, cache = step(ours.params, cache, new)
        got.append(int(out[0, -1].argmax()))
        new = jnp.asarray([got[-1:]])
    assert got == want
    assert "Paris" in ours.tokenizer.decode(got)


@pytest.mark.weights
def test_smollm2_tokenizer(smollm2):
    tokenizer = smollm2[0].tokenizer
    assert smollm2[0].chat_template.startswith("{% for message in messages %}")
    assert tokenizer.get_vocab_size() == smollm2[0].config.vocabulary == 49152
    text = "Unlearning 1234 examples,\n\n  dann Größe & 日本 \U0001f600\tthe end."
    encoded = tokenizer.encode(text)
    assert tokenizer.decode(encoded.ids) == text
    assert [one for one in encoded.tokens if one.isdigit()] == list("1234")
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<empty_output>"]
    assert [tokenizer.encode(one).ids for one in control] == [[0], [1], [2], [3], [16]]
    assert tokenizer.encode("a<|im_end|>\n").ids[1] == 2
    assert tokenizer.encode("").ids == []  # nothing is added by itself
