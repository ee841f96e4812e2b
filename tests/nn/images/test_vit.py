"""Vision Transformers: layers in parts, and files that hold them."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.core import adapters, tree
from jaxunlearn.nn.files import safetensors
from jaxunlearn.nn.images import vit, vit_config
from tests.network_files import assert_same, rewrite

CONFIG = vit.Config((12, 8, 2), 4, width=16, n_layers=3, n_heads=2, mlp_width=24, n_classes=5)
RECORD = {
    "model_type": "vit",
    "architectures": ["ViTModel"],
    "image_size": [12, 8],
    "num_channels": 2,
    "patch_size": 4,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "qkv_bias": True,
    "num_labels": 5,
}
Q1 = "vit.encoder.layer.1.attention.attention.query.weight"
POSITIONS = "vit.embeddings.position_embeddings"
PATCH = "vit.embeddings.patch_embeddings.projection.weight"


@functools.cache
def random_params(seed=0, dtype="float32"):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(vit.build(CONFIG).init, jax.random.key(0))[0]
    return jax.tree.map(
        lambda like: jnp.asarray((0.3 * rng.normal(size=like.shape)).astype(jnp.dtype(dtype))),
        shapes,
    )


def images(n=4):
    return np.random.default_rng(1).normal(size=(n, 12, 8, 2)).astype(np.float32)


@functools.cache
def apply():
    return jax.jit(vit.build(CONFIG).apply, static_argnames=("start_at", "stop_at", "unroll"))


@pytest.fixture
def folder(tmp_path):
    vit.save_pretrained(tmp_path, CONFIG, random_params())
    return tmp_path


# The network


def test_shapes():
    params, stats = jax.eval_shape(vit.build(CONFIG).init, jax.random.key(0))
    assert stats == {} and CONFIG.n_tokens == 7
    shapes = {name: leaf.shape for name, leaf in tree.named(params).items()}
    assert shapes["embed/cls"] == (16,) and shapes["embed/positions"] == (7, 16)
    assert shapes["embed/patch/kernel"] == (32, 16)
    assert shapes["layers/up/kernel"] == (3, 16, 24) and shapes["layers/down/bias"] == (3, 16)
    assert shapes["head/kernel"] == (16, 5)
    logits, stats = apply()(random_params(), {}, images())
    assert logits.shape == (4, 5) and logits.dtype == jnp.float32 and stats == {}
    assert vit.build(CONFIG) is vit.build(CONFIG)


@pytest.mark.parametrize("k", [0, 2, 3])
def test_layers_in_two_parts(k):
    """0 to k and k to the end is the whole, with all layers given or those that run."""
    params, x = random_params(), images()
    whole = apply()(params, {}, x)[0]
    below = apply()(params, {}, x, stop_at=k)[0]
    assert below.shape == (4, 7, 16)
    np.testing.assert_allclose(apply()(params, {}, below, start_at=k)[0], whole, atol=1e-5)
    above = {
        "layers": jax.tree.map(lambda leaf: leaf[k:], params["layers"]),
        "norm": params["norm"],
        "head": params["head"],
    }
    np.testing.assert_allclose(apply()(above, {}, below, start_at=k)[0], whole, atol=1e-5)
    last = apply()(params, {}, x, stop_at=3)[0]
    np.testing.assert_allclose(
        apply()(params, {}, below, start_at=k, stop_at=3)[0], last, atol=1e-5
    )


def test_unrolled_layers():
    params, x = random_params(), images()
    want = apply()(params, {}, x)[0]
    np.testing.assert_allclose(apply()(params, {}, x, unroll=3)[0], want, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch": 5}, "patch is 5; it must divide 12 x 8"),
        ({"n_heads": 3}, "n_heads is 3; it must divide width = 16"),
        ({"mlp_width": 0}, "mlp_width is 0; it must be at least 1"),
    ],
)
def test_sizes_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_inputs_that_do_not_fit():
    run, params = vit.build(CONFIG).apply, random_params()
    with pytest.raises(ValueError, match=r"x has shape \[4, 8, 12, 2\]; \[B, 12, 8, 2\]"):
        run(params, {}, images().swapaxes(1, 2))
    with pytest.raises(ValueError, match=r"x has shape \[4, 6, 16\]; \[B, 7, 16\] is needed"):
        run(params, {}, np.zeros((4, 6, 16), np.float32), start_at=1)
    for start, stop in ((2, 1), (-1, 2), (0, 4)):
        with pytest.raises(ValueError, match=f"start_at is {start} and stop_at {stop}"):
            run(params, {}, images(), start_at=start, stop_at=stop)


# Files


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_round_trip(tmp_path, dtype):
    params = random_params(dtype=dtype)
    vit.save_pretrained(tmp_path, CONFIG, params)
    config, read = vit.from_pretrained(tmp_path, dtype=dtype)
    assert config == CONFIG
    assert_same(read, params)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == dtype


def test_layout_of_the_file(folder):
    """By loops: what a tensor holds where, beside what the network reads there."""
    stored = safetensors.tensors(folder / "model.safetensors")
    params = random_params()
    patch, kernel = stored[PATCH][...], np.asarray(params["embed"]["patch"]["kernel"])
    assert patch.shape == (16, 2, 4, 4)
    for channel, row, column in np.ndindex(2, 4, 4):
        own = kernel[(row * 4 + column) * 2 + channel]
        np.testing.assert_array_equal(patch[:, channel, row, column], own)
    np.testing.assert_array_equal(stored[Q1][...], params["layers"]["q"]["kernel"][1].T)
    assert stored[POSITIONS].shape == (1, 7, 16)
    assert stored["vit.embeddings.cls_token"].shape == (1, 1, 16)
    np.testing.assert_array_equal(stored["classifier.weight"][...], params["head"]["kernel"].T)


def test_adapters_are_merged(tmp_path):
    adapted = adapters.attach(random_params(), r"layers/(q|v)/kernel", 2, 4.0, jax.random.key(0))
    own, rest = adapters.split(adapted)
    adapted = tree.combine(jax.tree.map(lambda leaf: leaf + 0.1, own), rest)
    vit.save_pretrained(tmp_path, CONFIG, adapted)
    read = vit.from_pretrained(tmp_path)[1]
    assert_same(read, adapters.merge(adapted))
    assert not np.array_equal(
        read["layers"]["v"]["kernel"], random_params()["layers"]["v"]["kernel"]
    )


def as_backbone(arrays):
    """What `ViTModel` writes: no prefix, a pooler, no classifier."""
    own = {name.removeprefix("vit."): a for name, a in arrays.items() if "classifier" not in name}
    return own | {"pooler.dense.weight": np.ones((16, 16), "<f4")}


def without_head(params):
    return {name: part for name, part in params.items() if name != "head"}


def test_a_folder_without_a_head(folder):
    rewrite(folder / "model.safetensors", as_backbone)
    (folder / "config.json").write_text(json.dumps(RECORD))
    config, read = vit.from_pretrained(folder)
    assert config == CONFIG
    assert_same(without_head(read), without_head(random_params()))
    assert_same(read["head"], vit.build(CONFIG).init(jax.random.key(0))[0]["head"])
    other = vit.from_pretrained(folder, seed=1)[1]
    assert_same(other["head"], vit.build(CONFIG).init(jax.random.key(1))[0]["head"])
    (folder / "config.json").write_text(json.dumps(RECORD | {"num_labels": None}))
    with pytest.raises(ValueError, match="config.json: config: num_labels is None"):
        vit.from_pretrained(folder)
    assert vit.from_pretrained(folder, n_classes=5)[0] == CONFIG


def test_another_number_of_classes(folder):
    config, read = vit.from_pretrained(folder, n_classes=7, dtype="bfloat16")
    assert config == dataclasses.replace(CONFIG, n_classes=7)
    want = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), without_head(random_params()))
    assert_same(without_head(read), want)
    kernel = np.asarray(read["head"]["kernel"].astype(jnp.float32))
    assert kernel.shape == (16, 7) and 0.01 < kernel.std() < 0.03
    assert_same(read["head"]["bias"], jnp.zeros(7, jnp.bfloat16))
    assert_same(vit.from_pretrained(folder, n_classes=5)[1], random_params())  # the file's


def test_variant(folder):
    other = random_params(seed=1)
    vit.save_pretrained(folder / "other", CONFIG, other)
    (folder / "other" / "model.safetensors").rename(folder / "model.fp16.safetensors")
    assert_same(vit.from_pretrained(folder, variant="fp16")[1], other)
    assert_same(vit.from_pretrained(folder)[1], random_params())


def test_several_files(folder):
    stored = safetensors.tensors(folder / "model.safetensors")
    index = {}
    for i in range(2):
        file = f"model-{i + 1:05}-of-00002.safetensors"
        own = {name: tensor[...] for name, tensor in list(stored.items())[i::2]}
        with (folder / file).open("wb") as opened:
            layout = {name: (a.shape, a.dtype) for name, a in own.items()}
            safetensors.write(opened, layout, own.values())
        index |= dict.fromkeys(own, file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert_same(vit.from_pretrained(folder)[1], random_params())


def drop(name):
    return lambda arrays: {key: value for key, value in arrays.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop(Q1), f"tensor '{Q1}' .* is missing"),
        (drop("classifier.bias"), "tensor 'classifier.bias' for 'head/bias' is missing"),
        (
            lambda a: drop(Q1.removeprefix("vit."))(as_backbone(a)),
            f"tensor '{Q1.removeprefix('vit.')}' .* is missing",
        ),
        (lambda a: a | {Q1: a[Q1][:-1]}, rf"safetensors: tensor '{Q1}' has shape \[15, 16\]"),
        (lambda a: a | {POSITIONS: a[POSITIONS][0]}, r"has shape \[7, 16\]; \[1, 7, 16\] is"),
        (lambda a: a | {PATCH: a[PATCH][:, :1]}, r"\[16, 1, 4, 4\]; \[16, 2, 4, 4\] is needed"),
        (lambda a: a | {"classifier.weight": np.ones((4, 16), "<f4")}, r"\[4, 16\]; \[5, 16\] is"),
        (lambda a: a | {"vit.extra": a[Q1]}, "safetensors: tensor 'vit.extra' has no place"),
        (
            lambda a: a | {Q1.replace("1", "3"): a[Q1]},
            f"tensor '{Q1.replace('1', '3')}' has no place",
        ),
    ],
)
def test_tensors_that_do_not_fit(folder, change, message):
    rewrite(folder / "model.safetensors", change)
    with pytest.raises(ValueError, match=message):
        vit.from_pretrained(folder)


def test_places_without_a_model(tmp_path, folder):
    with pytest.raises(ValueError, match="nothing.*, which is not there"):
        vit.from_pretrained(tmp_path / "nothing")
    with pytest.raises(ValueError, match="dtype is int32"):
        vit.from_pretrained(folder, dtype="int32")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="has no weights: neither model.safetensors nor"):
        vit.from_pretrained(folder)


def test_config():
    read = vit_config.from_hugging_face
    assert read(RECORD) == CONFIG
    assert read(RECORD, 9).n_classes == 9
    assert read(RECORD | {"id2label": {"0": "cat", "1": "dog", "2": "cow"}}).n_classes == 3
    assert read(RECORD | {"image_size": 8, "patch_size": [2, 2]}).image == (8, 8, 2)
    bare = {name: value for name, value in RECORD.items() if name != "num_labels"}
    assert read(bare | {"architectures": ["ViTForImageClassification"]}).n_classes == 2
    with pytest.raises(ValueError, match="id2label is missing.*n_classes is needed"):
        read(bare)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "deit"}, "model_type is 'deit'; only 'vit' is computed"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; only 'gelu' is computed"),
        ({"qkv_bias": False}, "qkv_bias is False; only True is computed"),
        ({"patch_size": [4, 2]}, r"patch_size is \[4, 2\]; only squares"),
        ({"image_size": [12, 8, 1]}, r"image_size is \[12, 8, 1\]; a whole number or two"),
        ({"image_size": "12"}, "image_size is '12'; a whole number or two"),
        ({"hidden_size": None}, "hidden_size is None; a whole number is needed"),
    ],
)
def test_config_that_is_not_supported(change, message):
    with pytest.raises(ValueError, match=message):
        vit_config.from_hugging_face(RECORD | change)


def test_save_checks_its_arguments(tmp_path):
    params = random_params()
    other = dataclasses.replace(CONFIG, n_classes=4)
    with pytest.raises(ValueError, match=r"'head/bias' has shape \[5\]; the config has \[4\]"):
        vit.save_pretrained(tmp_path, other, params)
    with pytest.raises(ValueError, match="params: 'head/bias' is missing"):
        vit.save_pretrained(tmp_path, CONFIG, without_head(params))
    with pytest.raises(ValueError, match="params: 'more' has no place in this network"):
        vit.save_pretrained(tmp_path, CONFIG, params | {"more": jnp.ones(1)})
    whole = jax.tree.map(lambda leaf: leaf.astype(jnp.int32), params)
    with pytest.raises(ValueError, match="is int32; a file holds"):
        vit.save_pretrained(tmp_path, CONFIG, whole)
    assert not list(tmp_path.iterdir())


def test_config_without_weights(folder):
    (folder / "model.safetensors").unlink()
    assert vit.read_config(folder) == CONFIG
    assert vit.read_config(folder, n_classes=9) == dataclasses.replace(CONFIG, n_classes=9)
    with pytest.raises(ValueError, match="which is not there"):
        vit.read_config(folder / "nothing")
