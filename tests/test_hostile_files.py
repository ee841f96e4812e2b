"""No file ends a reader but with an error that names it, or takes much more memory than it has."""

import json
import re
import shutil
import struct
import sys
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxunlearn import data
from jaxunlearn.cli.console import USAGE, guarded
from jaxunlearn.core.disk import DamagedError
from jaxunlearn.core.extras import MissingPackageError
from jaxunlearn.nn import weights
from jaxunlearn.nn.files import safetensors
from jaxunlearn.nn.language import decoder, tokenizers
from tests import hostile_files, mutations
from tests.hostile_files import SAMPLES, X, Y, quietly
from tests.network_files import LLAMA, write_gguf

GIGABYTE = 2**30


def peak(reset=False):
    """Bytes of memory of this process at its highest since the last reset; 0 if nobody knows."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    except (OSError, StopIteration):
        return 0


def survives(read, folder):
    """What is raised names the folder or a file in it; memory and time are bounded."""
    before, began = peak(reset=True), time.perf_counter()
    error = quietly(read, folder)
    assert peak() - before < GIGABYTE
    assert time.perf_counter() - began < 60
    assert error is None or str(folder) in str(error), error
    return error


def changed(name, folder, n):
    """Reads n changed versions of a sample's files; returns how many were refused."""
    sample, refused = SAMPLES[name], []
    good, work = folder / "good", folder / "work"
    good.mkdir()
    sample.make(good)
    assert quietly(sample.read, good) is None

    @settings(max_examples=n, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def one(drawn):
        file = drawn.draw(st.sampled_from(sorted(sample.files)))
        kinds = (mutations.of_bytes, *sample.files[file])
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(good, work)
        content = (work / file).read_bytes()
        (work / file).write_bytes(drawn.draw(drawn.draw(st.sampled_from(kinds))(content)))
        sample.after(work, file)
        refused.append(survives(sample.read, work) is not None)

    one()
    return sum(refused)


@pytest.mark.parametrize("name", SAMPLES)
def test_changed_files_are_read_or_named(name, tmp_path):
    assert changed(name, tmp_path, 6)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLES)
def test_five_thousand_changed_files(name, tmp_path):
    assert changed(name, tmp_path, 5_400 // len(SAMPLES)) > 100


def member(header, rest=b""):
    return {"x.npy": header + rest, "y.npy": mutations.npy_header("<i8", (4,)) + bytes(32)}


def test_archives_that_would_take_gigabytes(tmp_path):
    file = tmp_path / "a.npz"
    giant = mutations.npy_header("|u1", (2**20, 64, 64, 3))
    for members, kind, message in (
        (member(giant), zipfile.ZIP_STORED, "x: its header tells of uint8.*but 0 follow"),
        (member(giant, bytes(2**28)), zipfile.ZIP_DEFLATED, "x: it unpacks to 268,.* at most 100"),
        (member(b"PK"), zipfile.ZIP_STORED, "x: "),
        (member(giant), zipfile.ZIP_LZMA, "x: it is packed in a way that NumPy does not write"),
    ):
        with zipfile.ZipFile(file, "w", kind) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        before = peak(reset=True)
        with pytest.raises(ValueError, match=rf"a.npz cannot be read .* arrays: {message}"):
            data.load(file, 2)
        assert peak() - before < GIGABYTE / 4


def test_members_that_nobody_asked_for_stay_packed(tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in {"x": X, "y": Y}.items():
            with archive.open(f"{name}.npy", "w") as entry:
                np.lib.format.write_array(entry, array)
        with archive.open("more.npy", "w") as entry:
            for _ in range(8):
                entry.write(bytes(2**26))
    before = peak(reset=True)
    assert len(data.load(tmp_path / "a.npz", 4).x_train) == 4
    assert peak() - before < GIGABYTE / 8
    assert "also holds ['more'], which is not read" in capsys.readouterr().err


def test_sizes_of_networks_are_held_against_their_files(tmp_path):
    folder = tmp_path / "llama"
    weights.save(folder, LLAMA, hostile_files.PARAMS)
    record = json.loads((folder / "config.json").read_text())
    for name, value, message in (
        ("num_hidden_layers", 2**31 - 1, "the network has 2147483647 layers, the file 30 tensors"),
        ("num_hidden_layers", 2**32 - 1, "num_hidden_layers is 4294967295; it must be at least 1"),
        ("vocab_size", 2**31 - 1, r"'model.embed_tokens.weight' has shape \[64, 32\]"),
        ("head_dim", 2**31 - 2, "has shape"),
        ("num_key_value_heads", [1], r"num_key_value_heads is \[1\]; a whole number is needed"),
        ("hidden_size", "32", "hidden_size is '32'; a whole number is needed"),
        ("rms_norm_eps", "1e-5", "rms_norm_eps is '1e-5'; a finite number above 0 is needed"),
        ("rms_norm_eps", True, "rms_norm_eps is True; a finite number above 0 is needed"),
        ("tie_word_embeddings", "no", "tie_word_embeddings is 'no'; true or false is needed"),
        ("bos_token_id", [[1]], r"bos_token_id is \[\[1\]\]; whole numbers"),
    ):
        (folder / "config.json").write_text(json.dumps(record | {name: value}))
        error = survives(decoder.from_pretrained, folder)
        assert error is not None and re.search(message, str(error)), error
    (folder / "config.json").write_bytes(mutations.DEEP)
    assert "config.json: it is not a JSON object: it is nested too deeply" in str(
        survives(decoder.from_pretrained, folder)
    )


def test_gguf_files_whose_counts_are_larger_than_they(tmp_path):
    file = write_gguf(tmp_path / "it.gguf", LLAMA, hostile_files.PARAMS)
    content = file.read_bytes()

    def put(name, form, *numbers):
        at = content.index(name) + len(name)
        new = struct.pack("<" + form, *numbers)
        return content[:at] + new + content[at + len(new) :]

    layers, tensor = b"llama.block_count", b"blk.0.attn_q.weight"
    for changed, message in (
        (put(layers, "II", 4, 2**32 - 1), "n_layers is 4294967295"),
        (put(layers, "II", 4, 2**31 - 1), "the network has 2147483647 layers, the file 30 tensors"),
        (put(layers, "II", 6, 0x7FC00000), "n_layers is nan; a whole number is needed"),
        (put(tensor, "IQQ", 2, 2**40, 0), "has broken blocks"),
        (put(tensor, "IQQ", 2, 2**32, 2**32), "cut off; tensor 'blk.0.attn_q.weight' ends at"),
        (put(tensor, "I", 2**32 - 1), "'blk.0.attn_q.weight' has 4294967295 axes"),
        (put(tensor, "IQQIQ", 2, 32, 32, 0, 0), "'blk.0.attn_q.weight'.* lie over each other"),
        (put(b"GGUF", "IQ", 3, 2**63), "cut off or broken in its header"),
        (put(b"GGUF", "IQQ", 3, 1, 2**63), "cut off or broken in its header"),
    ):
        file.write_bytes(changed)
        error = survives(lambda folder: decoder.from_pretrained(folder / "it.gguf"), tmp_path)
        assert error is not None and re.search(message, str(error)), error


def test_headers_of_safetensors(tmp_path):
    file = tmp_path / "model.safetensors"
    whole = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}

    def header(**tensors):
        text = json.dumps(tensors).encode()
        return len(text).to_bytes(8, "little") + text + bytes(16)

    for content, message in (
        ((2**40).to_bytes(8, "little") + b"{}", "cut off in its header"),
        (header(a=whole, b=whole), "tensors 'a' and 'b' lie over each other"),
        (header(a=whole | {"shape": [-2, -2]}), "entry of 'a' is broken"),
        (header(a=whole | {"shape": ["2", 2]}), "entry of 'a' is broken"),
        (header(a=whole | {"shape": [2.0, 2]}), "entry of 'a' is broken"),
        (header(a=whole | {"shape": [1] * 60 + [4]}), "entry of 'a' is broken"),
        (header(a=whole | {"dtype": ["F32"]}), "entry of 'a' is broken"),
        (header(a=whole | {"shape": [2**40, 2**40]}), "has 16 bytes, which does not fit"),
        (header(a=[]), "entry of 'a' is broken"),
        ((100_000).to_bytes(8, "little") + mutations.DEEP, "it is nested too deeply"),
        (b"\x02\0\0\0\0\0\0\0[]", "its header is not JSON of an object"),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=rf"model.safetensors: .*{message}"):
            safetensors.tensors(file)
    file.write_bytes(header(none={"dtype": "F32", "shape": [0, 3], "data_offsets": [0, 0]}))
    assert safetensors.tensors(file)["none"][...].shape == (0, 3)


def test_an_index_names_files_beside_it(tmp_path):
    weights.save(tmp_path, LLAMA, hostile_files.PARAMS, max_shard_bytes=20_000)
    index = tmp_path / "model.safetensors.index.json"
    names = json.loads(index.read_text())["weight_map"]
    for file in ("../other.safetensors", "/etc/passwd", 3, ["a"], None):
        index.write_text(json.dumps({"weight_map": names | {next(iter(names)): file}}))
        with pytest.raises(ValueError, match="index.json: tensor .* is no file beside it"):
            decoder.from_pretrained(tmp_path)


def test_pictures_that_are_too_large(tmp_path):
    Image.fromarray(X[0]).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    body = b"IHDR" + struct.pack(">IIBBBBB", 2**14, 2**13, 8, 2, 0, 0, 0)
    large = content[:12] + body + struct.pack(">I", zlib.crc32(body)) + content[33:]
    (tmp_path / "a.png").write_bytes(large)
    error = survives(lambda folder: data.images([folder / "a.png"], (4, 4, 3)), tmp_path)
    assert "a.png cannot be decoded: " in str(error) and "pixels" in str(error)


@pytest.mark.parametrize("package", ["gguf", "tokenizers"])
def test_a_package_that_is_missing(tmp_path, monkeypatch, package, capsys):
    path = tmp_path / "model"
    path.mkdir()
    SAMPLES["llama" if package == "tokenizers" else "gguf"].make(path)
    path = path if package == "tokenizers" else path / "it.gguf"
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=rf'{package}; .*: pip install -e "\.\[llm\]"'):
        decoder.from_pretrained(path)
    assert guarded(lambda: decoder.from_pretrained(path), "again") == USAGE
    assert 'pip install -e ".[llm]"' in capsys.readouterr().err


def test_a_long_token_costs_no_more_than_its_length():
    tokens = ["<unk>", "a" * 3_000_000, "b" * 3_000_000, "ab", "a", "b"]
    entries = {"model": "llama", "tokens": tokens, "scores": [0.0] * 6, "token_type": [2, *[1] * 5]}
    began = time.perf_counter()
    named = {f"tokenizer.ggml.{name}": value for name, value in entries.items()}
    tokenizer = tokenizers.of_gguf(named)
    assert tokenizer is not None and tokenizer.encode("ab").tokens  # "▁" is none of its tokens
    assert time.perf_counter() - began < 60


@pytest.mark.parametrize("alpha", [[1], "16", {}, None])
def test_adapters_with_another_kind_of_number(tmp_path, alpha):
    SAMPLES["adapter"].make(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"lora_alpha": alpha}))
    survives(SAMPLES["adapter"].read, tmp_path)


def test_ledgers_with_entries_that_cannot_be(tmp_path):
    good, work = tmp_path / "good", tmp_path / "work"
    good.mkdir()
    SAMPLES["store"].make(good)
    order = {"shard": 0, "order": 0, "generation": 0, "sha256": ""}
    for what, content in (
        ("delete", {"ids": [3]}),
        ("delete", {"ids": ["nobody"]}),
        ("delete", {"ids": 3}),
        ("delete", []),
        ("train", {"seen": "0", "orders": []}),
        ("train", {"seen": 0, "orders": [order | {"shard": -1}]}),
        ("train", {"seen": 0, "orders": [order | {"shard": 2}]}),
        ("train", {"seen": 0, "orders": [order | {"order": "0"}]}),
        ("repair", {"seen": 0, "orders": [order | {"generation": None}]}),
        ("repair", {"seen": 0, "orders": [[]]}),
    ):
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(good, work)
        entries = json.loads((work / "entries.json").read_text())
        (work / "entries.json").write_text(json.dumps([*entries, [what, content]]))
        SAMPLES["store"].after(work, "entries.json")
        error = survives(SAMPLES["store"].read, work)
        assert isinstance(error, DamagedError), content
        assert "ledger.jsonl is damaged: entry 3" in str(error)
