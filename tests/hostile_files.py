"""Every reader of files, and a folder with good ones for each, which tests change."""

import dataclasses
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from jaxunlearn import data
from jaxunlearn.compact import Architecture
from jaxunlearn.compact import files as compact_files
from jaxunlearn.core import adapters, checkpoint, records, tree
from jaxunlearn.core.resume import ResumePoint
from jaxunlearn.core.run_folder import RunFolder
from jaxunlearn.data import forget_sets, text
from jaxunlearn.exact import ledger, orders, plan, service
from jaxunlearn.exact.files import file_digest
from jaxunlearn.exact.predictor import Predictor
from jaxunlearn.exact.settings import Settings, reading_of, record_of, settings_of
from jaxunlearn.nn import vit, weights
from jaxunlearn.nn.language import decoder
from tests import language, mutations, prepared_sets
from tests.network_files import LLAMA, TARGETS, random_params, write_gguf


@dataclasses.dataclass(frozen=True)
class Sample:
    """A folder that a reader reads.

    Attributes:
        make: writes it.
        read: reads all that is in it.
        files: strategies of changes, by file; beside those of its bytes.
        after: called when a file was changed, to make hashes fit again.
    """

    make: Callable[[Path], Any]
    read: Callable[[Path], Any]
    files: dict[str, tuple]
    after: Callable[[Path, str], None] = lambda folder, file: None


def _jsonl(folder):
    lines = [{"question": f"How many? {i}", "answer": str(i), "id": f"q{i}"} for i in range(3)]
    (folder / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


X = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3), dtype=np.uint8)
Y = np.arange(8) % 2


def _npz(folder):
    np.savez(folder / "a.npz", x=X, y=Y, extra=np.arange(3))
    np.savez_compressed(folder / "b.npz", x_train=X / 255, y_train=Y, x_val=X / 255, y_val=Y)


def _load_npz(folder):
    return data.load(folder / "a.npz", 4), data.load(folder / "b.npz")


def _images(folder):
    exif = Image.Exif()
    exif[274] = 6
    for split in ("train", "test"):
        for name in "ab":
            (folder / split / name).mkdir(parents=True)
            Image.fromarray(X[0]).save(folder / split / name / "0.png")
    place = folder / "train/a"
    Image.fromarray(X[1]).save(place / "1.jpg", exif=exif)
    Image.fromarray(X[2]).quantize(4).save(place / "2.png")
    Image.fromarray(X[3, ..., 0]).save(folder / "train/b/grey.png", transparency=3)
    (folder / "train/b/grey.png").rename(folder / "grey.png")


def _load_images(folder):
    loaded = data.load(folder, size=4, cache_dir=folder.parent / f".{folder.name}.cache")
    return loaded, data.images([folder / "grey.png"], (4, 4, 4))


def _load_prepared(folder):
    cache = folder.parent / f".{folder.name}.cache"
    return data.load("tiny", data_dir=folder, cache_dir=cache)


def _indices(folder):
    np.save(folder / "f.npy", np.array([1, 3]))
    (folder / "f.txt").write_text("1, 3\n5")


def _load_indices(folder):
    return [forget_sets.from_file(folder / name, 8) for name in ("f.npy", "f.txt")]


def _llama(folder):
    language.save(folder)


def _sharded(folder):
    weights.save(folder, LLAMA, random_params(LLAMA), max_shard_bytes=20_000)


def _gguf(folder):
    own = language.tokenizer()
    size = own.get_vocab_size()
    config = dataclasses.replace(LLAMA, vocabulary=size)
    vocabulary = own.get_vocab()
    merges = json.loads(own.to_str())["model"]["merges"]
    more = {
        "add_tokenizer_model": "gpt2",
        "add_tokenizer_pre": "gpt-2",
        "add_token_list": sorted(vocabulary, key=vocabulary.get),
        "add_token_merges": [" ".join(pair) for pair in merges],
        "add_token_types": [1] * size,
    }
    write_gguf(folder / "it.gguf", config, random_params(config), **more)


PARAMS = random_params(LLAMA)


def _adapter(folder):
    adapted = adapters.attach(PARAMS, TARGETS, 4, 8.0, jax.random.key(0))
    weights.save_adapter(folder, adapted)


VIT = vit.Config((4, 4, 1), 2, width=8, n_layers=4, n_heads=2, mlp_width=16, n_classes=2)


def _vit(folder):
    vit.save_pretrained(folder, VIT, vit.build(VIT).init(jax.random.key(0))[0])
    record = {"image_mean": [0.5], "image_std": [0.5], "do_rescale": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(record))


ARCHITECTURE = Architecture((12, 11, 2), 3, filters=3, hidden=4, classes=("a", "b", "c"))


def _compact(folder):
    params = jax.device_get(ARCHITECTURE.model.init(jax.random.key(0))[0])
    compact_files.save(folder / "m.safetensors", ARCHITECTURE, params, int8=True)


RECORD = {"settings": {"seed": 0, "sizes": [1, 2], "training": {"epochs": 3}}, "version": "1"}


def _run(folder):
    run = RunFolder(folder, RECORD, {"ssd": {"alpha": 1.0}}, resume=False)
    run.begin()
    run.add_seconds("full", "compile", 1.5)
    run.method_lanes("ssd", {"alpha": 1.0}).write(0, {"a": np.arange(3.0)})
    run.write_json("results.json", {"methods": {"ssd": [1.0, 2.0]}})


def _resume_run(folder):
    run = RunFolder(folder, RECORD, {"ssd": {"alpha": 1.0}}, True, {"old": "settings.seed"})
    records.read(folder / "results.json")
    return run.method_lanes("ssd", {"alpha": 1.0}).read(0)


PROGRESS = {"a": np.arange(6.0).reshape(2, 3), "b": np.arange(2)}
SHARED = {"w": np.arange(3.0)}


def _progress(folder):
    ResumePoint(folder, {"start": 1}).write(PROGRESS, beside={"x": np.arange(3)})
    checkpoint.store_shared(folder / "base", SHARED)


def _read_progress(folder):
    point = ResumePoint(folder, {"start": 1})
    return point.read(PROGRESS), checkpoint.load_shared(folder / "base", tree.digest(SHARED))


RECIPE = plan.StageRecipe(
    rank=2, alpha=2.0, learning_rate=1e-2, epochs=1, batch_size=4, dropout=0.0
)
PLAN = plan.make(2, orders.cyclic(2, 2), 16, recipe=RECIPE, layers_per_slice=2, lane_width=4)
IDS = [f"image-{i}" for i in range(8)]


def _store(folder):
    folder.rmdir()
    base = jax.device_get(vit.build(VIT).init(jax.random.key(0))[0])
    examples = {"x": np.zeros((8, 4, 4, 1), np.float32), "y": (np.arange(8) % 2).astype(np.int32)}
    source = {"settings": record_of(Settings()), "reading": {"mean": [0.5], "std": [0.5]}}
    made = service.create(folder, PLAN, VIT, base, IDS, examples, source=source)
    trained = [
        {"shard": a, "order": b, "generation": 0, "sha256": made.weights.write(a, b, 0, PROGRESS)}
        for a in range(2)
        for b in range(2)
    ]
    with made.ledger.writing():
        made.ledger.append("train", {"seen": 0, "orders": trained}, "test")
    made.delete(["image-3"])
    (folder / "entries.json").write_text(
        json.dumps([[entry.what, entry.data] for entry in made.ledger.entries])
    )
    (base_file,) = (folder / "base").iterdir()
    (folder / "base.txt").write_text(base_file.name)


def _open_store(folder):
    opened = Predictor(folder)
    _ = opened.base
    trained = [opened.order(*key) for key in opened.state.trained]
    return opened.status(), settings_of(opened), reading_of(opened), trained


def _signed(folder, file):
    """Makes a ledger whose hashes are right of entries, and of a plan, that are changed."""
    if file not in ("entries.json", "plan.json", "examples.json"):
        return
    if file == "examples.json":
        record = json.loads((folder / "plan.json").read_text())
        record["examples"] = file_digest(folder / "examples.json")
        (folder / "plan.json").write_text(json.dumps(record))
    try:
        entries = json.loads((folder / "entries.json").read_text())
        if file != "entries.json":
            entries[0][1]["plan"] = file_digest(folder / "plan.json")
        (folder / "ledger.jsonl").unlink()
        made = ledger.Ledger(folder / "ledger.jsonl")
        for what, content in entries:
            made.append(what, content, "")
    except (ValueError, TypeError, RecursionError):  # no entries at all
        (folder / "ledger.jsonl").touch()


LLAMA_FILES = {
    "config.json": (mutations.of_json,),
    "tokenizer.json": (mutations.of_json,),
    "tokenizer_config.json": (mutations.of_json,),
    "model.safetensors": (mutations.of_safetensors,),
}
SAMPLES = {
    "jsonl": Sample(
        _jsonl, lambda f: text.jsonl(f / "q.jsonl"), {"q.jsonl": (mutations.of_lines,)}
    ),
    "npz": Sample(_npz, _load_npz, {"a.npz": (), "b.npz": ()}),
    "images": Sample(
        _images,
        _load_images,
        {"train/a/0.png": (mutations.of_png,), "train/a/1.jpg": (), "train/a/2.png": (),
         "grey.png": (mutations.of_png,)},  # fmt: skip
    ),
    "prepared": Sample(
        prepared_sets.make,
        _load_prepared,
        {f"tiny/1.0.0/{name}.json": (mutations.of_json,) for name in ("dataset_info", "features")}
        | {"tiny/1.0.0/tiny-train.array_record-00000-of-00002": ()},
    ),
    "indices": Sample(_indices, _load_indices, {"f.npy": (mutations.of_npy,), "f.txt": ()}),
    "llama": Sample(_llama, decoder.from_pretrained, LLAMA_FILES),
    "sharded": Sample(
        _sharded,
        decoder.from_pretrained,
        {"model.safetensors.index.json": (mutations.of_json,),
         "model-00002-of-00008.safetensors": (mutations.of_safetensors,)},  # fmt: skip
    ),
    "gguf": Sample(
        _gguf,
        lambda f: decoder.from_pretrained(f / "it.gguf"),
        {"it.gguf": (mutations.of_gguf, mutations.of_gguf)},
    ),
    "adapter": Sample(
        _adapter,
        lambda f: weights.load_adapter(f, PARAMS),
        {"adapter_config.json": (mutations.of_json,),
         "adapter_model.safetensors": (mutations.of_safetensors,)},  # fmt: skip
    ),
    "vit": Sample(
        _vit,
        lambda f: (vit.from_pretrained(f), vit.normalisation(f)),
        {"config.json": (mutations.of_json,), "preprocessor_config.json": (mutations.of_json,),
         "model.safetensors": (mutations.of_safetensors,)},  # fmt: skip
    ),
    "compact": Sample(
        _compact,
        lambda f: compact_files.load(f / "m.safetensors"),
        {"m.safetensors": (mutations.of_safetensors,)},
    ),
    "run": Sample(
        _run,
        _resume_run,
        {name: (mutations.of_json,) for name in (
            "settings.json", "seconds.json", "results.json", "lanes/methods/ssd/settings.json")}
        | {"lanes/methods/ssd/00000.npz": ()},  # fmt: skip
    ),
    "progress": Sample(
        _progress, _read_progress, {"00000.npz": (), f"base/{tree.digest(SHARED)}.npz": ()}
    ),
    "store": Sample(
        _store,
        _open_store,
        {"ledger.jsonl": (mutations.of_lines,), "entries.json": (mutations.of_json,) * 3,
         "plan.json": (mutations.of_json,) * 3, "examples.json": (mutations.of_json,) * 3,
         "orders/00002.npz": ()},  # fmt: skip
        _signed,
    ),
}  # fmt: skip


def quietly(read: Callable[[Path], Any], folder: Path) -> Exception | None:
    """What a reader raises, if it raises; warnings that damaged files give rise to are none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read(folder)
        except (ValueError, OSError) as error:
            return error
    return None
