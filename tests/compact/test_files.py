"""Networks in files: what is read is what was written, and anything else is refused."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxunlearn.compact import Architecture, files, measure
from jaxunlearn.core import tree

ARCHITECTURE = Architecture((12, 11, 2), 3, filters=3, hidden=4, classes=("a", "b", "c"))


@pytest.fixture(scope="module")
def params():
    own, _ = ARCHITECTURE.model.init(jax.random.key(0))
    return jax.tree.map(np.asarray, own)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).random((20, *ARCHITECTURE.input_shape), np.float32)


def test_a_round_trip_has_the_same_bits(params, tmp_path):
    files.save(tmp_path / "m.safetensors", ARCHITECTURE, params)
    found = files.load(tmp_path / "m.safetensors")
    assert found.architecture == ARCHITECTURE
    assert tree.digest(found.params) == tree.digest(params)


def test_int8_is_a_quarter_and_off_by_half_a_step(params, tmp_path):
    files.save(tmp_path / "m.safetensors", ARCHITECTURE, params, int8=True)
    found = tree.named(files.load(tmp_path / "m.safetensors").params)
    for name, leaf in tree.named(params).items():
        if leaf.ndim == 1:
            np.testing.assert_array_equal(found[name], leaf)
        else:
            step = np.abs(leaf).max(axis=tuple(range(leaf.ndim - 1))) / 127
            assert (np.abs(found[name] - leaf) <= step / 2 * 1.001).all()


def test_the_program_runs_without_this_package(params, images, tmp_path):
    program = files.export(ARCHITECTURE.model, params, ARCHITECTURE.input_shape)
    (tmp_path / "m.stablehlo").write_bytes(program)
    np.save(tmp_path / "x.npy", images)
    code = (
        "import sys, jax, numpy as np\n"
        "call = jax.export.deserialize(bytearray(open('m.stablehlo', 'rb').read())).call\n"
        "x = np.load('x.npy')\n"
        "np.save('y.npy', np.concatenate([call(x[:13]), call(x[13:])]))\n"
        "assert 'jaxunlearn' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    logits = measure.logits_of(ARCHITECTURE.model, params, images)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), logits, atol=1e-5)
    assert jax.export.deserialize(bytearray(program)).platforms == files.PLATFORMS
    readers = files.readers(program)
    assert readers["jax"] == jax.__version__ and readers["months"] == 6
    least, most = readers["calling_conventions_read"]
    assert least <= readers["calling_convention"] <= most


def test_bad_files(params, tmp_path):
    path = tmp_path / "m.safetensors"
    with pytest.raises(ValueError, match="is no file"):
        files.load(path)
    path.write_bytes(b"\x05\0\0\0\0\0\0\0hello")
    with pytest.raises(ValueError, match="no safetensors file"):
        files.load(path)
    files.save(path, ARCHITECTURE, params)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match="cut off"):
        files.load(path)
    path.write_bytes(whole.replace(b"[12, 11, 2]", b"[14, 14, 2]"))
    with pytest.raises(ValueError, match=r"branch_1/head/kernel is \[1, 1, 6, 3\].* has \[2, 2"):
        files.load(path)
    _says(path, {"network": "resnet"} | _without_network())
    with pytest.raises(ValueError, match="describes no network that is known: network is 'resnet'"):
        files.load(path)


def test_damaged_numbers(params, tmp_path):
    path = tmp_path / "m.safetensors"
    files.save(path, ARCHITECTURE, params)
    path.write_bytes(path.read_bytes()[:-4] + np.float32(np.nan).tobytes())
    with pytest.raises(ValueError, match="not finite"):
        files.load(path)
    files.save(path, ARCHITECTURE, params, int8=True)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"out/kernel.scale", b"out/kernel.other"))
    with pytest.raises(
        ValueError, match=r"out/kernel is int8 .*, but out/kernel.scale is not there"
    ):
        files.load(path)
    for metadata in ("5", "[1]"):
        _says(path, json.loads(metadata))
        with pytest.raises(ValueError, match="describes no network"):
            files.load(path)


def test_parameters_that_do_not_fit_are_not_written(params, tmp_path):
    path = tmp_path / "m.safetensors"
    other = Architecture((14, 14, 2), 3, filters=3, hidden=4)
    with pytest.raises(ValueError, match=r"params, for .*branch_1/head/kernel is \[1, 1, 6, 3\]"):
        files.save(path, other, params)
    for change in (lambda leaf: leaf[None], lambda leaf: np.full_like(leaf, np.nan)):
        with pytest.raises(ValueError, match="params, for"):
            files.save(path, ARCHITECTURE, jax.tree.map(change, params))
    assert not path.exists()


def _without_network():
    return {"input_shape": [12, 11, 2], "n_classes": 3}


def _says(path, what):
    """A file without tensors that describes itself so."""
    header = json.dumps({"__metadata__": {"jaxunlearn.compact": json.dumps(what)}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)


def test_what_a_network_costs(params):
    size = measure.size(ARCHITECTURE.model, params, ARCHITECTURE.input_shape)
    assert size["parameters"] == tree.size(params)
    assert size["weight_bytes"] == 4 * size["parameters"]


def test_the_confusion_matrix():
    logits = np.eye(3)[[0, 1, 1, 2]]
    matrix = measure.confusion(logits, np.array([0, 1, 2, 2]))
    np.testing.assert_array_equal(matrix, [[1, 0, 0], [0, 1, 0], [0, 1, 1]])
