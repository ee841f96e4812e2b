"""Weights in files: what is written is read back bit for bit, and nothing broken is let through."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxunlearn.core import adapters, mesh, tree
from jaxunlearn.nn.files import reader, safetensors
from jaxunlearn.nn.language import decoder, weights
from jaxunlearn.nn.language.tensor_names import HUGGING_FACE
from tests.network_files import (
    CONFIGS,
    LLAMA,
    SCALED,
    TARGETS,
    assert_same,
    random_params,
    rewrite,
)


@pytest.fixture
def folder(tmp_path):
    weights.save(tmp_path, LLAMA, random_params(LLAMA))
    return tmp_path


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
    stored = safetensors.tensors(folder / "model.safetensors")
    assert len({tensor.dtype for tensor in stored.values()}) == 4
    for dtype in ("float32", "bfloat16"):
        read = decoder.from_pretrained(folder, dtype=dtype).params
        assert {leaf.dtype for leaf in jax.tree.leaves(read)} == {jnp.dtype(dtype)}
        for i in range(LLAMA.n_layers):
            want = stored[f"model.layers.{i}.self_attn.q_proj.weight"][:].T.astype(dtype)
            assert np.asarray(read["layers"]["q"]["kernel"][i]).tobytes() == want.tobytes()


def test_adapters_are_merged(tmp_path):
    params = random_params(LLAMA)
    adapted = adapters.attach(params, TARGETS, 4, 8.0, jax.random.key(0))
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
    whole = safetensors.Stored.__getitem__

    def getitem(self, index):
        out = whole(self, index)
        taken.append(out.size)
        return out

    monkeypatch.setattr(safetensors.Stored, "__getitem__", getitem)
    tensors = safetensors.tensors(folder / "model.safetensors")
    stored = [tensors[f"model.layers.{i}.mlp.down_proj.weight"] for i in range(3)]
    leaf = jax.ShapeDtypeStruct((3, 64, 32), "float32")
    (place,) = HUGGING_FACE.places({"layers/down/kernel": leaf})
    part = reader.read_blocks(place, stored, leaf.shape, np.dtype("float32"))
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
        (drop(Q1), f"tensor '{Q1}'.* is missing"),
        (drop("lm_head.weight"), "'lm_head.weight' for 'head/kernel' is missing"),
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
    last = max(safetensors.tensors(file).items(), key=lambda item: item[1].offset)[0]
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
    with pytest.raises(ValueError, match=f"{shard.name}: tensor '{Q1}'.* is missing"):
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


def test_config_and_tokenizer_without_weights(folder):
    for file in folder.glob("*.safetensors"):
        file.unlink()
    assert decoder.read_config(folder) == LLAMA
    assert decoder.read_tokenizer(folder) == (None, None)
    for read in (decoder.read_config, decoder.read_tokenizer):
        with pytest.raises(ValueError, match="which is not there"):
            read(folder / "nothing")


def test_variant(folder):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), random_params(LLAMA, seed=3))
    weights.save(folder / "half", LLAMA, half)
    (folder / "half" / "model.safetensors").rename(folder / "model.fp16.safetensors")
    assert_same(decoder.from_pretrained(folder, dtype="float16", variant="fp16").params, half)
    assert_same(decoder.from_pretrained(folder).params, random_params(LLAMA))
