"""Classifiers from files: names of tensors, normalisation, refusals. No PyTorch is needed."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn.nn
from jaxunlearn import nn
from jaxunlearn.core import tree
from jaxunlearn.core.tree import Tree
from jaxunlearn.nn import classifiers, vit
from jaxunlearn.nn.layers import norms

BUILD = {
    "wrn-10-1": lambda n: nn.wide_resnet(10, 1, n),
    "wrn-16-2": lambda n: nn.wide_resnet(16, 2, n),
    "resnext29-4x32": nn.resnext29,
    "resnet50": nn.resnet50,
    "resnet26-gn": nn.resnet26_gn,
}
SOME = {  # names and shapes in the published networks
    "wrn-10-1": {
        "conv1.weight": (16, 3, 3, 3),
        "block2.layer.0.convShortcut.weight": (32, 16, 1, 1),
        "block3.layer.0.bn1.running_var": (32,),
        "bn1.weight": (64,),
        "fc.weight": (10, 64),
    },
    "wrn-16-2": {"block3.layer.1.conv2.weight": (128, 128, 3, 3), "fc.bias": (10,)},
    "resnext29-4x32": {
        "conv_1_3x3.weight": (64, 3, 3, 3),
        "stage_1.0.downsample.0.weight": (256, 64, 1, 1),
        "stage_2.0.conv_conv.weight": (256, 64, 3, 3),
        "stage_3.2.bn_expand.running_mean": (1024,),
        "classifier.weight": (10, 1024),
    },
    "resnet50": {
        "conv1.weight": (64, 3, 7, 7),
        "layer1.0.downsample.1.running_mean": (256,),
        "layer4.2.conv3.weight": (2048, 512, 1, 1),
        "fc.weight": (10, 2048),
    },
    "resnet26-gn": {
        "conv1.weight": (16, 3, 3, 3),
        "layer3.3.conv2.weight": (64, 64, 3, 3),
        "bn.bias": (64,),
        "fc.weight": (10, 64),
    },
}


def shapes_of(name, n_classes=10):
    params, stats = jax.eval_shape(BUILD[name](n_classes).init, jax.random.key(0))
    return {"params": params, "stats": stats}


def tensors_of(name, n_classes=10) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    leaves = tree.named(shapes_of(name, n_classes))
    places = classifiers.tensor_table(name).places(leaves)
    return {place.tensors[0]: rng.uniform(0.1, 1, place.of).astype(np.float32) for place in places}


CODES = {"f2": "F16", "f4": "F32", "f8": "F64", "i8": "I64", "i4": "I32"}


def written(file, tensors) -> str:
    """A safetensors file, written apart from the reader's own writer."""
    header, body = {}, b""
    for name, tensor in tensors.items():
        data = np.ascontiguousarray(tensor).tobytes()
        header[name] = {
            "dtype": CODES[tensor.dtype.str[1:]],
            "shape": list(tensor.shape),
            "data_offsets": [len(body), len(body) + len(data)],
        }
        body += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return str(file)


def same(loaded: Tree, name: str, tensors) -> None:
    table = classifiers.tensor_table(name)
    for leaf, value in tree.named(loaded).items():
        _, tensor, form = table.tensor(leaf)
        assert value.dtype == jnp.float32
        np.testing.assert_array_equal(form.to_file(np.asarray(value)), tensors[tensor], leaf)


def test_the_module_is_an_attribute():
    assert jaxunlearn.nn.classifiers.from_pretrained is classifiers.from_pretrained


@pytest.mark.parametrize("name", BUILD)
def test_values_are_those_of_the_file(name, tmp_path):
    tensors = tensors_of(name)
    assert SOME[name].items() <= {it: tensor.shape for it, tensor in tensors.items()}.items()
    file = written(tmp_path / "model.safetensors", counted(tensors))
    for path in (file, tmp_path):
        model, params, stats = classifiers.from_pretrained(path, name)
        same({"params": params, "stats": stats}, name, tensors)
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), "float32")
    logits, after = jax.eval_shape(lambda *it: model.apply(*it, train=True), params, stats, x)
    assert logits.shape == (2, 10)
    assert jax.tree.structure(after) == jax.tree.structure(stats)


def test_half_precision_is_widened(tmp_path):
    tensors = {name: it.astype(np.float16) for name, it in tensors_of("wrn-10-1").items()}
    loaded = classifiers.from_pretrained(written(tmp_path / "a.safetensors", tensors), "wrn-10-1")
    same({"params": loaded.params, "stats": loaded.stats}, "wrn-10-1", tensors)


def counted(tensors):
    """With PyTorch's counters of batches."""
    names = [name.replace("running_mean", "num_batches_tracked") for name in tensors]
    return tensors | {name: np.array(9) for name in names if name.endswith("tracked")}


STATISTICS = (np.array([0.1, 0.2, 0.3], np.float32), np.array([0.5, 0.25, 2.0], np.float32))
WRAPPED = {
    "bare": ("", None),
    "by DataParallel": ("module.", None),
    "mu and sigma": ("", ("mu", "sigma")),
    "mu and sigma, by DataParallel": ("module.", ("module.mu", "module.sigma")),
    "a module before it": ("model.", ("normalize.mean", "normalize.std")),
    "both": ("module.model.", ("module.normalize.mean", "module.normalize.std")),
    "a sequence": ("1.", ("0.mean", "0.std")),
}


@pytest.mark.parametrize(("prefix", "statistics"), WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize("shape", [(3,), (1, 3, 1, 1)])
def test_wrapped_networks_and_their_normalisation(prefix, statistics, shape, tmp_path):
    bare = tensors_of("resnet26-gn")
    tensors = {prefix + name: tensor for name, tensor in counted(bare).items()}
    for name, value in zip(statistics or (), STATISTICS, strict=False):
        tensors[name] = value.reshape(shape)
    file = written(tmp_path / "wrapped.safetensors", tensors)
    model, params, _ = classifiers.from_pretrained(file, "resnet26-gn")
    same({"params": params}, "resnet26-gn", bare)
    mean, deviation = STATISTICS if statistics else ([0.5] * 3, [0.5] * 3)
    by_hand = nn.normalised(nn.resnet26_gn(), tuple(mean), tuple(deviation))
    assert model is by_hand  # the same arguments give the same object


def test_what_normalises_by_itself(tmp_path):
    means = {"wrn-10-1": None, "resnext29-4x32": 0.5, "resnet50": (0.485, 0.456, 0.406)}
    deviations = {"resnext29-4x32": 0.5, "resnet50": (0.229, 0.224, 0.225)}
    for name, mean in means.items():
        file = written(tmp_path / f"{name}.safetensors", tensors_of(name))
        plain = BUILD[name](10)
        if mean is None:
            expected = plain
        else:
            statistics = (np.broadcast_to(it, 3) for it in (mean, deviations[name]))
            expected = nn.normalised(plain, *map(tuple, statistics))
        assert classifiers.from_pretrained(file, name).model is expected


def without(name):
    return lambda tensors: {it: tensor for it, tensor in tensors.items() if it != name}


def also(**more):
    renamed = {name.replace("__", "."): np.float32(tensor) for name, tensor in more.items()}
    return lambda tensors: tensors | renamed


BAD = [
    (without("fc.bias"), {}, "'fc.bias' for 'params/head/bias' is missing"),
    (without("bn1.running_var"), {}, "'bn1.running_var' for 'stats/norm/var' is missing"),
    (also(other__weight=[1.0]), {}, "'other.weight' has no place"),
    (also(fc__weight=np.zeros((10, 32))), {}, r"'fc.weight' has shape \[10, 32\]; \[10, 64\]"),
    (dict, {"n_classes": 7}, r"'fc.(bias|weight)' has shape \[10.*; \[7"),
    (dict, {"architecture": "wrn-10-2"}, "tensor 'block1.*has shape|is missing"),
    (dict, {"architecture": "wrn-16-1"}, "'block1.layer.1.* is missing"),
    (dict, {"architecture": "resnet26-gn"}, "'layer1.0.conv1.weight'.* is missing"),
    (dict, {"architecture": "resnext29-4x32"}, "'stage_1.0.conv_reduce.weight'.* is missing"),
    (also(mu=[0.5] * 3), {}, "mu; one mean .* and one deviation"),
    (also(mu=[0.5] * 3, sigma=[1, 0, 1]), {}, "'sigma' is .*above 0"),
    (also(mu=[0.5] * 3, sigma=[1, np.nan, 1]), {}, "'sigma' is .*finite"),
    (also(mu=[0.5] * 4, sigma=[1] * 3), {}, r"'mu' has shape \[4\]; one value"),
]


@pytest.mark.parametrize(("change", "arguments", "message"), BAD)
def test_another_network_is_refused_by_file_and_tensor(change, arguments, message, tmp_path):
    file = written(tmp_path / "net.safetensors", change(tensors_of("wrn-10-1")))
    with pytest.raises(ValueError, match=message) as caught:
        classifiers.from_pretrained(file, **{"architecture": "wrn-10-1"} | arguments)
    assert file in str(caught.value)


def test_messages_have_the_names_of_a_wrapped_file(tmp_path):
    tensors = {f"module.{name}": tensor for name, tensor in tensors_of("wrn-10-1").items()}
    file = written(tmp_path / "net.safetensors", tensors)
    with pytest.raises(ValueError, match="'module.fc.bias' has shape"):
        classifiers.from_pretrained(file, "wrn-10-1", n_classes=3)


@pytest.mark.parametrize("name", ["vgg", "wrn-28", "WRN-28-10", "resnet-50", None])
def test_unknown_architectures(name):
    with pytest.raises(ValueError, match="architecture is .*wrn-DEPTH-WIDTH.*resnet26-gn"):
        classifiers.from_pretrained("nowhere", name)
    with pytest.raises(ValueError, match="depth is 11"):
        classifiers.from_pretrained("nowhere", "wrn-11-1")


def test_what_is_no_safetensors_file(tmp_path):
    with pytest.raises(ValueError, match="neither a file nor a folder"):
        classifiers.from_pretrained(tmp_path / "missing.safetensors", "wrn-10-1")
    with pytest.raises(ValueError, match="has no weights"):
        classifiers.from_pretrained(tmp_path, "wrn-10-1")
    for name, message in (("a.pt", r"a\.pt is pickled.*torch\.load"), ("a.bin", "is pickled")):
        (tmp_path / name).write_bytes(b"\x80\x02")
        with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
            classifiers.from_pretrained(tmp_path / name, "wrn-10-1")
    (tmp_path / "broken.safetensors").write_bytes(b"no header")
    with pytest.raises(ValueError, match="broken.safetensors"):
        classifiers.from_pretrained(tmp_path / "broken.safetensors", "wrn-10-1")


NORM = ".*norm.*/(scale|bias)"
NAMES = ["mlp", "cnn", "cnn_bn", "small_cnn", "resnet9", "wrn-10-1", *list(BUILD)[2:]]


@pytest.mark.parametrize("name", [*NAMES, "vit"])
def test_features_beside_logits_and_the_leaves_of_norms(name):
    if name == "vit":
        model = vit.build(vit.Config((32, 32, 3), 4, 32, 2, 2, 64, 10))
    else:
        model = nn.normalised(nn.by_name(name, (32, 32, 3), 10), [0.5] * 3, [0.5] * 3)
    params, stats = jax.eval_shape(model.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), "float32")
    apply = lambda *it: model.apply(*it, return_features=True)  # noqa: E731
    (logits, features), _ = jax.eval_shape(apply, params, stats, x)
    head = [leaf for leaf in jax.tree.leaves(params) if leaf.shape[1:] == (10,)]
    assert logits.shape == (2, 10) and head[-1].shape == (features.shape[1], 10)
    of_norms = {path for path in tree.named(params) if re.fullmatch(NORM, path)}
    assert set(norms.affine(params)) == of_norms
    assert bool(of_norms) == (name not in ("mlp", "cnn"))
    if of_norms:
        trained, _ = tree.partition(params, tree.select(params, norms.affine(params)))
        assert set(tree.named(trained)) == of_norms


def test_sizes_of_the_published_networks():
    sizes = {"resnet50": 25_557_032, "resnext29-4x32": 6_807_882, "resnet26-gn": 366_938}
    for name, size in sizes.items():
        n_classes = 1000 if name == "resnet50" else 10
        assert tree.size(shapes_of(name, n_classes)["params"]) == size
    assert nn.multiply_adds(nn.resnext29(100), (32, 32, 3)) == 1_071_419_392


def test_sides_that_a_shortcut_cannot_halve():
    with pytest.raises(ValueError, match="does not fit inputs of 30 x 30 x 3.*multiples of 4"):
        nn.by_name("resnet26-gn", (30, 30, 3), 10)
