"""Weights in files: what is written is read back bit for bit, and nothing broken is let through."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxunlearn.core import adapters, mesh, tree
from jaxunlearn.nn import _gguf, _safetensors, decoder, weights
from jaxunlearn.nn._decoder_block import rope_frequencies
from jaxunlearn.nn._tensor_names import in_files

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


@pytest.fixture
def folder(tmp_path):
    weights.save(tmp_path, LLAMA, random_params(LLAMA))
    return tmp_path


def rewrite(file, change):
    """Applies `change` to the tensors of a safetensors file, as a dict of arrays."""
    arrays = {name: stored[:] for name, stored in _safetensors.tensors(file).items()}
    arrays = change(arrays) or arrays
    with file.open("wb") as opened:
        layout = {name: (value.shape, value.dtype) for name, value in arrays.items()}
        _safetensors.write(opened, layout, arrays.values())


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_round_trip(tmp_path, config, dtype):
    params = random_params(config, dtype=jnp.dtype(dtype))
    weights.save(tmp_path, config, params)
    read = decoder.from_pretrained(tmp_path, dtype=dtype)
    assert read.config == config
    assert read.tokenizer is None and read.chat_template is None
    assert_same(read.params, params)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == dtype


def test_round_trip_in_several_files(tmp_path):
    params = random_params(LLAMA)
    weights.save(tmp_path, LLAMA, params, max_shard_bytes=20_000)
    files = sorted(file.name for file in tmp_path.glob("*.safetensors"))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert all((tmp_path / file).stat().st_size < 21_500 for file in files)  # with the header
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * tree.size(params)
    assert_same(decoder.from_pretrained(tmp_path).params, params)


def test_save_replaces_what_was_there(tmp_path):
    weights.save(tmp_path, LLAMA, random_params(LLAMA), max_shard_bytes=20_000)
    params = random_params(LLAMA, seed=1)
    weights.save(tmp_path, LLAMA, params)
    assert_same(decoder.from_pretrained(tmp_path).params, params)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    params = random_params(LLAMA, seed=2)
    weights.save(tmp_path, LLAMA, params, max_shard_bytes=20_000)
    assert_same(decoder.from_pretrained(tmp_path).params, params)


def test_types_may_differ_between_tensors(folder):
    def change(arrays):
        for i, (name, value) in enumerate(arrays.items()):
            arrays[name] = value.astype(["<f8", "<f4", "<f2", ml_dtypes.bfloat16][i % 4])

    rewrite(folder / "model.safetensors", change)
    stored = _safetensors.tensors(folder / "model.safetensors")
    assert len({tensor.dtype for tensor in stored.values()}) == 4
    for dtype in ("float32", "bfloat16"):
        read = decoder.from_pretrained(folder, dtype=dtype).params
        assert {leaf.dtype for leaf in jax.tree.leaves(read)} == {jnp.dtype(dtype)}
        for i in range(LLAMA.n_layers):
            want = stored[f"model.layers.{i}.self_attn.q_proj.weight"][:].T.astype(dtype)
            assert np.asarray(read["layers"]["q"]["kernel"][i]).tobytes() == want.tobytes()


def test_adapters_are_merged(tmp_path):
    params = random_params(LLAMA)
    adapted = adapters.attach(params, decoder.LORA_TARGETS, 4, 8.0, jax.random.key(0))
    b = adapted["layers"]["q"]["kernel"].lora_b + 0.1
    kernel = dataclasses.replace(adapted["layers"]["q"]["kernel"], lora_b=b)
    adapted["layers"]["q"]["kernel"] = kernel
    weights.save(tmp_path, LLAMA, adapted)
    read = decoder.from_pretrained(tmp_path).params
    assert_same(read, adapters.merge(adapted))
    assert np.abs(read["layers"]["q"]["kernel"] - params["layers"]["q"]["kernel"]).max() > 0.01


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_read_over_a_mesh(tmp_path, family):
    """The layout is that of `shardings`, and the bits do not depend on it."""
    config = CONFIGS[family]
    params = random_params(config)
    weights.save(tmp_path, config, params)
    devices = mesh.make({"data": 1, "model": 1})
    read = decoder.from_pretrained(tmp_path, mesh=devices).params
    assert_same(read, params)
    wanted = decoder.shardings(params, devices)
    assert jax.tree.all(jax.tree.map(lambda leaf, like: leaf.sharding == like, read, wanted))


def test_blocks_are_cut_out_of_the_file(folder, monkeypatch):
    """Any block of a leaf is read by itself, transposed where the leaf is."""
    taken = []
    whole = _safetensors.Stored.__getitem__

    def getitem(self, index):
        out = whole(self, index)
        taken.append(out.size)
        return out

    monkeypatch.setattr(_safetensors.Stored, "__getitem__", getitem)
    tensors = _safetensors.tensors(folder / "model.safetensors")
    own = [tensors[f"model.layers.{i}.mlp.down_proj.weight"] for i in range(3)]
    part = weights._reader("layers/down/kernel", own, (3, 64, 32), np.dtype("float32"))
    index = (slice(1, 3), slice(16, 32), slice(0, 8))
    block = part(index)
    full = random_params(LLAMA)["layers"]["down"]["kernel"]
    np.testing.assert_array_equal(block, full[index])
    assert taken == [128, 128]
    part(index)
    assert len(taken) == 2  # devices that hold the same block share it


def test_buffers_are_ignored(folder):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(folder / "model.safetensors", lambda a: a | {name: np.ones(4, "<f4")})
    assert_same(decoder.from_pretrained(folder).params, random_params(LLAMA))


def test_stored_head_of_a_tied_network(tmp_path):
    params = random_params(SCALED)
    weights.save(tmp_path, SCALED, params)
    file = tmp_path / "model.safetensors"
    rewrite(file, lambda a: a | {"lm_head.weight": a["model.embed_tokens.weight"]})
    assert_same(decoder.from_pretrained(tmp_path).params, params)
    rewrite(file, lambda a: a | {"lm_head.weight": a["lm_head.weight"] + 1})
    with pytest.raises(ValueError, match="'lm_head.weight' is not the embedding"):
        decoder.from_pretrained(tmp_path)


def drop(name):
    return lambda arrays: {key: value for key, value in arrays.items() if key != name}


Q1 = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop(Q1), f"tensor '{Q1}' is missing"),
        (drop("lm_head.weight"), "'lm_head.weight' is missing"),
        (lambda a: a | {Q1: a[Q1][:-1]}, rf"model.safetensors: tensor '{Q1}' has shape \[31, 32\]"),
        (lambda a: a | {Q1: a[Q1].T[:8]}, rf"tensor '{Q1}' has shape \[8, 32\]; \[32, 32\] is"),
        (
            lambda a: a | {"model.layers.3.mlp.up_proj.weight": a[Q1]},
            "model.safetensors: tensor 'model.layers.3.mlp.up_proj.weight' has no place",
        ),
        (
            lambda a: a | {"model.layers.0.self_attn.q_proj.bias": np.ones(32, "<f4")},
            "'model.layers.0.self_attn.q_proj.bias' has no place",
        ),
    ],
)
def test_tensors_that_do_not_fit(folder, change, message):
    rewrite(folder / "model.safetensors", change)
    with pytest.raises(ValueError, match=message):
        decoder.from_pretrained(folder)


def test_files_that_are_cut_off(folder):
    file = folder / "model.safetensors"
    data = file.read_bytes()
    last = max(_safetensors.tensors(file).items(), key=lambda item: item[1].offset)[0]
    for size, message in [
        (len(data) - 1, f"cut off; tensor '{last}' ends at byte {len(data)}"),
        (100, "cut off in its header"),
        (5, "cut off in its header"),
        (0, "cut off in its header"),
    ]:
        file.write_bytes(data[:size])
        with pytest.raises(ValueError, match=f"model.safetensors: {message}"):
            decoder.from_pretrained(folder)
    file.write_bytes((8).to_bytes(8, "little") + b"not json" + data)
    with pytest.raises(ValueError, match="its header is not JSON"):
        decoder.from_pretrained(folder)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": "I32"}, "tensor 'lm_head.weight' is I32; read are F64, F32, F16, BF16"),
        ({"data_offsets": [0, 4]}, "tensor 'lm_head.weight' of F32.* has 4 bytes"),
        ({"shape": None}, "entry of 'lm_head.weight' is broken"),
        ({"data_offsets": "ab"}, "entry of 'lm_head.weight' is broken"),
    ],
)
def test_headers_that_are_wrong(folder, entry, message):
    file = folder / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["lm_head.weight"] |= entry
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    with pytest.raises(ValueError, match=message):
        decoder.from_pretrained(folder)


def test_index_that_is_wrong(tmp_path):
    weights.save(tmp_path, LLAMA, random_params(LLAMA), max_shard_bytes=20_000)
    index = tmp_path / "model.safetensors.index.json"
    text = index.read_text()
    shard = tmp_path / json.loads(text)["weight_map"][Q1]
    rewrite(shard, drop(Q1))
    with pytest.raises(ValueError, match=f"{shard.name}: tensor '{Q1}' is missing"):
        decoder.from_pretrained(tmp_path)
    shard.unlink()
    with pytest.raises(ValueError, match=f"the file '{shard.name}' that it names is not there"):
        decoder.from_pretrained(tmp_path)
    index.write_text("{}")
    with pytest.raises(ValueError, match="it has no weight_map"):
        decoder.from_pretrained(tmp_path)
    index.write_text("[")
    with pytest.raises(ValueError, match="index.json: it is not a JSON object"):
        decoder.from_pretrained(tmp_path)


def test_places_without_a_model(tmp_path, folder):
    with pytest.raises(ValueError, match="which is not there"):
        decoder.from_pretrained(tmp_path / "nothing")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="a folder without config.json$"):
        decoder.from_pretrained(empty)
    (empty / "small.gguf").write_bytes(b"")
    with pytest.raises(ValueError, match="without config.json; small.gguf in it can be read"):
        decoder.from_pretrained(empty)
    with pytest.raises(ValueError, match="small.gguf: the file is empty"):
        decoder.from_pretrained(empty / "small.gguf")
    with pytest.raises(ValueError, match="neither a folder nor a .gguf file"):
        decoder.from_pretrained(folder / "config.json")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="has no weights: neither model.safetensors nor"):
        decoder.from_pretrained(folder)
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match="only pickled weights .pytorch_model.bin."):
        decoder.from_pretrained(folder)


def test_networks_that_are_not_supported(folder):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"model_type": "mamba"}))
    with pytest.raises(ValueError, match="config.json: model_type is 'mamba'"):
        decoder.from_pretrained(folder)
    file.write_text("nothing")
    with pytest.raises(ValueError, match="config.json: it is not a JSON object"):
        decoder.from_pretrained(folder)


def test_wrong_dtype(folder):
    for dtype in ("int32", "float64"):
        with pytest.raises(ValueError, match=f"dtype is {dtype}"):
            decoder.from_pretrained(folder, dtype=dtype)


def test_save_checks_its_arguments(tmp_path):
    params = random_params(LLAMA)
    with pytest.raises(ValueError, match="'head/kernel' has no place"):
        weights.save(tmp_path, dataclasses.replace(LLAMA, tied=True), params)
    with pytest.raises(ValueError, match=r"'embed/table' has shape \[64, 32\]; .* \[65, 32\]"):
        weights.save(tmp_path, dataclasses.replace(LLAMA, vocabulary=65), params)
    with pytest.raises(ValueError, match="'norm/scale' is missing"):
        weights.save(tmp_path, LLAMA, {k: v for k, v in params.items() if k != "norm"})
    with pytest.raises(ValueError, match="'norm/scale' is int32; a file holds"):
        weights.save(tmp_path, LLAMA, params | {"norm": {"scale": jnp.ones(32, jnp.int32)}})
    half = dataclasses.replace(LLAMA, qkv_bias=True)  # no config.json says so
    with pytest.raises(ValueError, match="config.json has no form"):
        weights.save(tmp_path, half, random_params(half))
    assert not list(tmp_path.iterdir())


# Adapters


def adapted(config, *, rank=4, alpha=8.0, targets=decoder.LORA_TARGETS, seed=0, **options):
    params = random_params(config)
    params = adapters.attach(params, targets, rank, alpha, jax.random.key(seed), **options)
    rng = np.random.default_rng(seed)
    own, rest = adapters.split(params)
    own = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), own)
    return tree.combine(own, rest)


@pytest.mark.parametrize("options", [{}, {"rank_stabilized": True}, {"rank": 3, "alpha": 10.0}])
def test_adapters_round_trip(tmp_path, options):
    params = adapted(LLAMA, **options)
    stabilized = options.get("rank_stabilized", False)
    weights.save_adapter(tmp_path, params, base="some/base", rank_stabilized=stabilized)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["r"] == options.get("rank", 4)
    assert config["lora_alpha"] == options.get("alpha", 8)
    assert config["use_rslora"] is stabilized
    assert config["base_model_name_or_path"] == "some/base"
    assert config["target_modules"] == sorted(
        ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    stored = _safetensors.tensors(tmp_path / "adapter_model.safetensors")
    name = "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"
    assert stored[name].shape == (config["r"], 64)
    np.testing.assert_array_equal(stored[name][:].T, params["layers"]["down"]["kernel"].lora_a[1])
    assert_same(weights.load_adapter(tmp_path, random_params(LLAMA)), params)


def test_adapter_of_the_output_layer_and_in_bfloat16(tmp_path):
    params = jax.tree.map(
        lambda leaf: leaf.astype(jnp.bfloat16), adapted(LLAMA, targets=("head/kernel", ".*/q/.*"))
    )
    weights.save_adapter(tmp_path, params)
    names = list(_safetensors.tensors(tmp_path / "adapter_model.safetensors"))
    assert "base_model.model.lm_head.lora_B.weight" in names
    base = random_params(LLAMA, dtype=ml_dtypes.bfloat16)
    assert_same(weights.load_adapter(tmp_path, base), params)


def test_outermost_adapter_goes_on_top(tmp_path):
    below = adapted(LLAMA)
    both = adapters.attach(below, decoder.LORA_TARGETS, 2, 2.0, jax.random.key(1))
    weights.save_adapter(tmp_path, both)
    assert_same(weights.load_adapter(tmp_path, below), both)


def test_adapters_that_do_not_fit(tmp_path):
    weights.save_adapter(tmp_path, adapted(LLAMA))
    params = random_params(LLAMA)
    file, settings = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    deeper = dataclasses.replace(LLAMA, n_layers=4)
    with pytest.raises(ValueError, match="layers.3.*for 'layers/.*/kernel' is missing"):
        weights.load_adapter(tmp_path, random_params(deeper))
    shallower = dataclasses.replace(LLAMA, n_layers=2)
    with pytest.raises(ValueError, match="tensor .*layers.2.* has no place in this network"):
        weights.load_adapter(tmp_path, random_params(shallower))
    wider = dataclasses.replace(LLAMA, mlp_width=96)
    with pytest.raises(ValueError, match=r"has shape \[4, 64\]; rank 4 and 'layers/down/kernel'"):
        weights.load_adapter(tmp_path, random_params(wider))
    config = json.loads(settings.read_text())
    for change, message in [
        ({"r": 8}, r"has shape \[4, 64\]; rank 8 and 'layers/down/kernel' need \[8, 64\]"),
        ({"r": None}, "r is None"),
        ({"use_dora": True}, "use_dora is True"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern is"),
    ]:
        settings.write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=message):
            weights.load_adapter(tmp_path, params)
    settings.write_text(json.dumps(config))
    rewrite(file, lambda a: {"something.lora_A.weight": np.ones((4, 4), "<f4")})
    with pytest.raises(ValueError, match="'something.lora_A.weight' has no place in this network"):
        weights.load_adapter(tmp_path, params)
    with pytest.raises(ValueError, match="there is no adapter_config.json in it"):
        weights.load_adapter(tmp_path / "none", params)


def test_adapters_that_one_file_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match="params has no adapters"):
        weights.save_adapter(tmp_path, random_params(LLAMA))
    params = adapters.attach(
        adapted(LLAMA, targets=".*/q/.*"), ".*/v/.*", 2, 4.0, jax.random.key(0)
    )
    with pytest.raises(ValueError, match="'layers/v/kernel' has rank 2"):
        weights.save_adapter(tmp_path, params)
    off = adapters.switch(adapted(LLAMA), jnp.array([1.0, 0.0, 1.0]))
    with pytest.raises(ValueError, match="has rank 4 and scale 0.0, 2.0"):
        weights.save_adapter(tmp_path, off)


# GGUF files


gguf = pytest.importorskip("gguf")
KINDS = gguf.GGMLQuantizationType


def interleaved(rows, n_heads):
    """What llama.cpp does to queries and keys of the architecture llama."""
    halves = rows.reshape(n_heads, 2, rows.shape[0] // n_heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def write_gguf(file, config, params, kind=None, change=None, **metadata):
    """Writes a file as llama.cpp's converter does; matrices in `kind`, norms and biases in f32."""
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
    for key, value in metadata.items():
        getattr(writer, key)(value)
    tensors = {}
    for name, leaf in tree.named(params).items():
        for i, tensor in enumerate(in_files(name, config.n_layers, gguf=True)):
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
    read = decoder.from_pretrained(write_gguf(tmp_path / "it.gguf", config, params))
    assert read.config == config
    assert read.tokenizer is None and read.chat_template is None
    assert_same(read.params, params)


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
    _, packed, _ = _gguf.read(file)
    rows = rounded(params, KINDS.Q8_0)["layers"]["k"]["kernel"][1].T
    for index in [(slice(3, 9), slice(4, 20)), (slice(None), slice(8)), (slice(14, 16),)]:
        np.testing.assert_array_equal(packed["blk.1.attn_k.weight"][index], rows[index])


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
        (lambda t: t.pop(q1), f"it.gguf: tensor '{q1}' is missing"),
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
    for metadata, message in [
        ({"add_rope_scaling_type": gguf.RopeScalingType.YARN}, "rope.scaling.type is 'yarn'"),
        ({"add_rope_dimension_count": 4}, "rope.dimension_count is 4; it must be 8"),
        ({"add_value_length": 4}, "attention.value_length is 4; it must be 8"),
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


# Tokenizers


tokenizers = pytest.importorskip("tokenizers")


def trained(pre):
    """A byte-level tokenizer with a pre-tokenizer of its own, as `tokenizer.json` would have it."""
    own = tokenizers.Tokenizer(tokenizers.models.BPE())
    own.pre_tokenizer = pre
    own.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    own.train_from_iterator([TEXT] * 20, trainer)
    return own


TEXT = (
    "The cat's 12345 mice, they'LL run;  two   spaces\n\n\tand a tab. Größe 日本 x=3.14\r\n  end "
    "THE CATS weren't there (in 1999)!!! e\u0301 ½ ٣٤"
)
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split_by(pattern):
    pre = tokenizers.pre_tokenizers
    return pre.Sequence(
        [
            pre.Split(tokenizers.Regex(pattern), "isolated"),
            pre.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def pre_tokenizer(name):
    pre = tokenizers.pre_tokenizers
    plain = pre.ByteLevel(add_prefix_space=False)
    return {
        "gpt-2": plain,
        "smollm": pre.Sequence([pre.Digits(individual_digits=True), plain]),
        "llama-bpe": split_by(WORDS % "{1,3}"),
        "qwen2": split_by(WORDS % ""),
    }[name]


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_byte_level_tokenizer_of_a_gguf_file(tmp_path, name):
    want = trained(pre_tokenizer(name))
    if name == "qwen2":
        want.normalizer = tokenizers.normalizers.NFC()
    model = json.loads(want.to_str())["model"]
    vocabulary = sorted(model["vocab"], key=model["vocab"].get)
    config = dataclasses.replace(
        LLAMA, vocabulary=len(vocabulary) + 2, bos=vocabulary.index("<|begin|>"), eos=(1,)
    )
    kinds = [3, 3] + [1] * (len(vocabulary) - 2) + [4, 5]
    file = write_gguf(
        tmp_path / "it.gguf",
        config,
        random_params(config),
        add_tokenizer_model="gpt2",
        add_tokenizer_pre=name,
        add_token_list=[*vocabulary, "<think>", "[PAD1]"],
        add_token_types=kinds,
        add_token_merges=[" ".join(pair) for pair in model["merges"]],
        add_add_bos_token=name == "llama-bpe",
        add_chat_template="{{ messages }}",
    )
    read = decoder.from_pretrained(file)
    assert read.config == config
    assert read.chat_template == "{{ messages }}"
    got = read.tokenizer
    begin = [0] if name == "llama-bpe" else []
    assert got.encode(TEXT).ids == begin + want.encode(TEXT).ids
    assert got.encode(TEXT, add_special_tokens=False).ids == want.encode(TEXT).ids
    assert got.encode("").ids == begin
    text = TEXT if name != "qwen2" else TEXT.replace("e\u0301", "é")
    assert got.decode(got.encode(TEXT).ids) == text
    think = len(vocabulary)
    for token, i in {"<|begin|>": 0, "<|end|>": 1, "<think>": think}.items():
        assert got.encode(token, add_special_tokens=False).ids == [i]
        assert got.encode(f"a{token}b", add_special_tokens=False).ids[1] == i
    assert got.decode([1, think]) == "<think>"  # control tokens are left out
    assert got.token_to_id("[PAD1]") is None
    digits = got.encode("1234", add_special_tokens=False).tokens
    if name in ("smollm", "qwen2"):
        assert digits == ["1", "2", "3", "4"]


def test_unknown_pre_tokenizer(tmp_path):
    file = write_gguf(
        tmp_path / "it.gguf",
        LLAMA,
        random_params(LLAMA),
        add_tokenizer_model="gpt2",
        add_tokenizer_pre="tekken",
        add_token_list=["a"],
    )
    with pytest.raises(ValueError, match="tokenizer.ggml.pre is 'tekken'; known are"):
        decoder.from_pretrained(file)


def sentence_piece(text, scores):
    """The algorithm of SentencePiece's BPE: joins the best-scored neighbours, leftmost first."""
    pieces = list("▁" + text.replace(" ", "▁"))
    while True:
        found = [
            (-scores[a + b], i)
            for i, (a, b) in enumerate(itertools.pairwise(pieces))
            if a + b in scores
        ]
        if not found:
            break
        _, i = min(found)
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
    out = []
    for piece in pieces:
        out += [piece] if piece in scores else [f"<0x{byte:02X}>" for byte in piece.encode()]
    return out


def test_sentence_piece_tokenizer_of_a_gguf_file(tmp_path):
    words = ["▁t", "he", "▁the", "in", "▁c", "at", "▁cat", "er", "ing", "▁in", "the", "▁▁", "ch"]
    letters = sorted(set("▁abcdefghijklmnopqrstuvwxyz.,"))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words, *letters]
    kinds = [2, 3, 3] + [6] * 256 + [1] * (len(words) + len(letters))
    scores = [0.0] * 259 + [-float(i) for i in range(len(words) + len(letters))]
    config = dataclasses.replace(LLAMA, vocabulary=len(tokens), eos=(2,))
    file = write_gguf(
        tmp_path / "it.gguf",
        config,
        random_params(config),
        add_tokenizer_model="llama",
        add_token_list=tokens,
        add_token_types=kinds,
        add_token_scores=scores,
        add_unk_token_id=0,
    )
    tokenizer = decoder.from_pretrained(file).tokenizer
    known = dict(zip(tokens[259:], scores[259:], strict=True))
    for text in [
        "the cat in there",
        "  catching   things",
        "Ünder 日本\n",
        "x",
        "theinthe",
        "a.b ",
    ]:
        encoded = tokenizer.encode(text)
        assert encoded.tokens == ["<s>", *sentence_piece(text, known)], text
        assert tokenizer.decode(encoded.ids) == text
    assert tokenizer.encode("</s>", add_special_tokens=False).ids == [2]


def test_tokenizer_of_a_folder(tmp_path):
    own = trained(pre_tokenizer("smollm"))
    own.enable_truncation(3)
    own.enable_padding(length=8)
    config = dataclasses.replace(LLAMA, vocabulary=own.get_vocab_size(), bos=0, eos=(1,))
    params = random_params(config)
    weights.save(tmp_path, config, params, tokenizer=own, chat_template="{{ a }}")
    read = decoder.from_pretrained(tmp_path)
    want = trained(pre_tokenizer("smollm")).encode(TEXT).ids
    assert read.tokenizer.encode(TEXT).ids == want  # neither cut nor padded
    assert read.chat_template == "{{ a }}"
    settings = tmp_path / "tokenizer_config.json"
    assert json.loads(settings.read_text())["eos_token"] == "<|end|>"
    settings.write_text(
        json.dumps(
            {
                "chat_template": [
                    {"name": "tool_use", "template": "{{ b }}"},
                    {"name": "default", "template": "{{ c }}"},
                ]
            }
        )
    )
    assert decoder.from_pretrained(tmp_path).chat_template == "{{ c }}"
    (tmp_path / "chat_template.jinja").write_text("{{ d }}")
    assert decoder.from_pretrained(tmp_path).chat_template == "{{ d }}"
    weights.save(tmp_path, config, params, tokenizer=own, chat_template="{{ e }}")
    assert decoder.from_pretrained(tmp_path).chat_template == "{{ e }}"
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="tokenizer.json: no tokenizer"):
        decoder.from_pretrained(tmp_path)
