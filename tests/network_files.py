"""Small networks with random weights, and files that hold them."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.core import tree
from jaxunlearn.nn.files import safetensors
from jaxunlearn.nn.language import decoder
from jaxunlearn.nn.language.tensor_names import GGUF

LLAMA = decoder.Config(
    family="llama",
    vocabulary=64,
    width=32,
    mlp_width=64,
    n_layers=3,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    context=128,
    eps=1e-5,
    rope_theta=5e5,
    bos=1,
    eos=(2, 5),
)
TARGETS = r"layers/(q|v|o|gate|up|down)/kernel"  # of adapters
QWEN2 = dataclasses.replace(LLAMA, family="qwen2", qkv_bias=True, tied=True, eos=(2,), bos=None)
QWEN3 = dataclasses.replace(LLAMA, family="qwen3", qk_norm=True, head_dim=16, eos=())
SCALED = dataclasses.replace(
    LLAMA, rope_scaling=decoder.RopeScaling(32.0, 1.0, 4.0, 8192), tied=True
)
BIASED = dataclasses.replace(LLAMA, qkv_bias=True, output_bias=True, mlp_bias=True)
CONFIGS = {"llama": LLAMA, "qwen2": QWEN2, "qwen3": QWEN3, "scaled": SCALED, "biased": BIASED}


def random_params(config, seed=0, dtype=np.float32):
    """No leaf is all zeros or ones, so that none that is lost or mixed up goes unseen."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(decoder.decoder(config).init, jax.random.key(0))[0]
    return jax.tree.map(
        lambda like: jnp.asarray((0.3 * rng.normal(size=like.shape)).astype(dtype)), shapes
    )


def assert_same(given, wanted):
    given, wanted = tree.named(given), tree.named(wanted)
    assert list(given) == list(wanted)
    for name, leaf in wanted.items():
        assert given[name].dtype == leaf.dtype, name
        # Bits, not values: NaN and -0 count.
        assert np.asarray(given[name]).tobytes() == np.asarray(leaf).tobytes(), name


def rewrite(file, change):
    """Applies `change` to the tensors of a safetensors file, as a dict of arrays."""
    arrays = {name: stored[:] for name, stored in safetensors.tensors(file).items()}
    arrays = change(arrays) or arrays
    with file.open("wb") as opened:
        layout = {name: (value.shape, value.dtype) for name, value in arrays.items()}
        safetensors.write(opened, layout, arrays.values())


def add_integers(file, name, values):
    """Adds an int64 tensor to a safetensors file, as buffers of PyTorch's modules are."""
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header, body, more = json.loads(data[8:start]), data[start:], values.astype("<i8").tobytes()
    offsets = [len(body), len(body) + len(more)]
    header[name] = {"dtype": "I64", "shape": list(values.shape), "data_offsets": offsets}
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + body + more)


def interleaved(rows, n_heads):
    """What llama.cpp does to queries and keys of the architecture llama."""
    halves = rows.reshape(n_heads, 2, rows.shape[0] // n_heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def write_gguf(file, config, params, kind=None, change=None, **metadata):
    """Writes a file as llama.cpp's converter does; matrices in `kind`, norms and biases in f32."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(file, config.family)
    writer.add_block_count(config.n_layers)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.width)
    writer.add_feed_forward_length(config.mlp_width)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_layer_norm_rms_eps(config.eps)
    writer.add_rope_freq_base(config.rope_theta)
    if config.head_dim * config.n_heads != config.width:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if config.bos is not None:
        writer.add_bos_token_id(config.bos)
    for i, token in enumerate(config.eos):
        (writer.add_eos_token_id, writer.add_eot_token_id)[i](token)
    for key, value in metadata.pop("entries", {}).items():
        add = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32}
        add[type(value)](key, value)
    for key, value in metadata.items():
        getattr(writer, key)(value)
    tensors = {}
    for name, leaf in tree.named(params).items():
        for i, tensor in enumerate(GGUF.names(name, config.n_layers)):
            value = np.asarray(leaf[i] if name.startswith("layers/") else leaf)
            value = value.T if name.endswith("/kernel") else value
            if config.family == "llama" and name.split("/")[1] in ("q", "k"):
                heads = config.n_heads if "/q/" in name else config.n_kv_heads
                value = interleaved(value, heads)
            tensors[tensor] = np.ascontiguousarray(value)
    if change is not None:
        change(tensors)
    for name, value in tensors.items():
        if kind is None or value.ndim == 1:
            writer.add_tensor(name, value)
        else:
            writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
