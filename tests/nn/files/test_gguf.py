"""GGUF files: weights of every type, and nothing broken is let through."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.core import mesh, tree
from jaxunlearn.nn.language import decoder, pretrained
from jaxunlearn.nn.layers.rotary import rope_frequencies
from tests.network_files import (
    BIASED,
    LLAMA,
    QWEN2,
    QWEN3,
    SCALED,
    assert_same,
    random_params,
    write_gguf,
)

gguf = pytest.importorskip("gguf")
KINDS = gguf.GGMLQuantizationType


def rounded(params, kind):
    """The parameters as the file holds them: each row of a matrix quantised and back."""

    def there_and_back(name, leaf):
        if name.endswith(("bias", "scale")):
            return leaf
        turned = name.endswith("/kernel")
        rows = np.ascontiguousarray(np.swapaxes(leaf, -1, -2) if turned else leaf)
        back = gguf.quants.dequantize(gguf.quants.quantize(rows, kind), kind)
        return jnp.asarray(np.swapaxes(back, -1, -2) if turned else back)

    leaves = [there_and_back(*item) for item in tree.named(params).items()]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


# What a GGUF file says; it has at most an eos and an eot token.
BIASED_LLAMA = dataclasses.replace(BIASED, eos=(2,))
GGUF = {"llama": LLAMA, "qwen2": QWEN2, "qwen3": QWEN3, "biased": BIASED_LLAMA}


@pytest.mark.parametrize("config", GGUF.values(), ids=GGUF)
def test_gguf(tmp_path, config):
    params = random_params(config)
    file = write_gguf(tmp_path / "it.gguf", config, params)
    read = decoder.from_pretrained(file)
    assert read.config == decoder.read_config(file) == config
    assert read.tokenizer is None and read.chat_template is None
    assert_same(read.params, params)
    with pytest.raises(ValueError, match="variant is 'fp16'; a .gguf file has none"):
        decoder.from_pretrained(file, variant="fp16")


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_1"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_quantised_gguf(tmp_path, family, kind):
    config, kind = GGUF[family], KINDS[kind]
    params = random_params(config)
    file = write_gguf(tmp_path / "it.gguf", config, params, kind)
    wanted = rounded(params, kind)
    assert_same(decoder.from_pretrained(file).params, wanted)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), wanted)
    assert_same(decoder.from_pretrained(file, dtype="bfloat16").params, half)
    assert_same(
        decoder.from_pretrained(file, mesh=mesh.make({"data": 1, "model": 1})).params, wanted
    )


def test_block_of_a_quantised_tensor(tmp_path):
    params = random_params(LLAMA)
    file = write_gguf(tmp_path / "it.gguf", LLAMA, params, KINDS.Q8_0)
    packed, _ = pretrained.opened(file).gguf
    rows = rounded(params, KINDS.Q8_0)["layers"]["k"]["kernel"][1].T
    for index in [(slice(3, 9), slice(4, 20)), (slice(None), slice(8)), (slice(14, 16),)]:
        np.testing.assert_array_equal(packed["blk.1.attn_k.weight"][index], rows[index])


@pytest.mark.parametrize(("head_dim", "theta", "context"), [(32, 5e5, 64), (8, 1e4, 8192)])
def test_gguf_with_another_context_or_no_pair_scaled_in_full(tmp_path, head_dim, theta, context):
    scaling = decoder.RopeScaling(8.0, 1.0, 4.0, context)
    config = dataclasses.replace(SCALED, head_dim=head_dim, rope_theta=theta, rope_scaling=scaling)
    plain, scaled = (rope_frequencies(head_dim, theta, one) for one in (None, scaling))
    file = write_gguf(
        tmp_path / "it.gguf",
        config,
        random_params(config),
        change=lambda t: t.update({"rope_freqs.weight": plain / scaled}),
    )
    read = decoder.from_pretrained(file).config
    np.testing.assert_array_equal(rope_frequencies(head_dim, theta, read.rope_scaling), scaled)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_gguf_with_llama_3_scaling(tmp_path, factor):
    scaling = decoder.RopeScaling(factor, 1.0, 4.0, 8192)
    config = dataclasses.replace(SCALED, head_dim=32, rope_scaling=scaling)
    plain = rope_frequencies(config.head_dim, config.rope_theta, None)
    factors = np.array(plain / rope_frequencies(config.head_dim, config.rope_theta, scaling))
    assert len(np.unique(factors)) == 3 and 1 < factors[8] < factor  # all three branches
    file, params = tmp_path / "it.gguf", random_params(config)

    def write(factors):
        return write_gguf(
            file, config, params, change=lambda t: t.update({"rope_freqs.weight": factors})
        )

    assert decoder.from_pretrained(write(factors)).config == config
    ones = decoder.from_pretrained(write(np.ones_like(factors))).config
    assert ones == dataclasses.replace(config, rope_scaling=None)
    factors[8] *= 1.01
    with pytest.raises(ValueError, match="'rope_freqs.weight' is not Llama 3's scaling"):
        decoder.from_pretrained(write(factors))
    with pytest.raises(ValueError, match="'rope_freqs.weight' is not Llama 3's scaling"):
        decoder.from_pretrained(write(factors[:3]))


def test_gguf_files_that_do_not_fit(tmp_path):
    params, file = random_params(LLAMA), tmp_path / "it.gguf"
    q1, q = "blk.1.attn_q.weight", np.ones((32, 32), np.float32)
    for change, message in [
        (lambda t: t.pop(q1), f"it.gguf: tensor '{q1}' for 'layers/q/kernel' is missing"),
        (lambda t: t.pop("token_embd.weight"), "it.gguf: tensor 'token_embd.weight' is missing"),
        (lambda t: t.update({q1: q[:16]}), rf"it.gguf: tensor '{q1}' has shape \[16, 32\]"),
        (
            lambda t: t.update({"blk.0.ffn_gate_inp.weight": q}),
            "'blk.0.ffn_gate_inp.weight' has no",
        ),
        (lambda t: t.update({q1: q.astype(np.int32)}), f"tensor '{q1}' is I32, which"),
    ]:
        write_gguf(file, LLAMA, params, change=change)
        with pytest.raises(ValueError, match=message):
            decoder.from_pretrained(file)
    harmless = {"add_rope_scaling_type": gguf.RopeScalingType.NONE, "add_rope_scaling_factor": 4.0}
    harmless |= {"add_vocab_size": 64, "add_tensor_data_layout": "Meta AI original pth"}
    harmless |= {"add_expert_count": 0, "entries": {"general.something": 1}}
    assert decoder.read_config(write_gguf(file, LLAMA, params, **harmless)) == LLAMA
    for metadata, message in [
        ({"add_rope_scaling_type": gguf.RopeScalingType.YARN}, "rope.scaling.type is 'yarn'"),
        ({"add_rope_dimension_count": 4}, "rope.dimension_count is 4; it must be 8"),
        ({"add_value_length": 4}, "attention.value_length is 4; it must be 8"),
        ({"add_rope_scaling_factor": 4.0}, "rope.scaling.factor is 4.0 without a type, which"),
        ({"entries": {"llama.rope.scale_linear": 4.0}}, "rope.scale_linear is 4.0 without a type"),
        ({"entries": {"llama.rope.scaling.attn_factor": 2.0}}, "attn_factor is 2.0; only 1"),
        ({"entries": {"llama.rope.scaling.yarn_beta_fast": 32.0}}, "yarn_beta_fast is 32.0; only"),
        ({"add_expert_count": 8}, "expert_count is 8; only 0"),
        ({"add_sliding_window": 64}, "attention.sliding_window is 64; only 0"),
        ({"add_causal_attention": False}, "attention.causal is False; only True"),
        ({"add_logit_scale": 0.5}, "logit_scale is 0.5"),
        ({"entries": {"llama.something.new": "x"}}, "something.new is 'x'; only no such entry"),
        ({"entries": {"tokenizer.chat_template": 5}}, "tokenizer.chat_template is a int"),
        ({"add_tokenizer_model": "t5"}, "tokenizer.ggml.model is 't5'"),
    ]:
        if "add_tokenizer_model" in metadata:
            metadata |= {"add_token_list": ["a"]}
        write_gguf(file, LLAMA, params, **metadata)
        with pytest.raises(ValueError, match=message):
            decoder.from_pretrained(file)
    writer = gguf.GGUFWriter(file, "gemma")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ValueError, match="it.gguf: architecture is 'gemma'; supported"):
        decoder.from_pretrained(file)


def test_gguf_files_that_are_cut_off(tmp_path):
    file = write_gguf(tmp_path / "it.gguf", LLAMA, random_params(LLAMA))
    data = file.read_bytes()
    file.write_bytes(data[:-64])
    with pytest.raises(ValueError, match="it.gguf: cut off; tensor '.*' ends at byte"):
        decoder.from_pretrained(file)
    for size in (200, 20, 6):
        file.write_bytes(data[:size])
        with pytest.raises(ValueError, match="it.gguf: cut off or broken in its header"):
            decoder.from_pretrained(file)
    file.write_bytes(b"GGML" + data[4:])
    with pytest.raises(ValueError, match="it.gguf: no GGUF file"):
        decoder.from_pretrained(file)
    file.write_bytes(data[:4] + b"\x01" + data[5:])
    with pytest.raises(ValueError, match="GGUF version 1; 2 and 3 are read"):
        decoder.from_pretrained(file)
