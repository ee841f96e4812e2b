import contextlib
import random
import shutil
import zipfile
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxunlearn.core import checkpoint, disk, step, tree


@pytest.fixture
def state(small):
    _, params, stats, _ = small
    return step.init_state(params, optax.adam(1e-3), stats)


def test_round_trip(state, tmp_path):
    checkpoint.save(tmp_path / "a", state)
    restored = checkpoint.restore(tmp_path / "a", state)
    chex.assert_trees_all_equal(restored, state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    abstract = jax.eval_shape(lambda: state)
    chex.assert_trees_all_equal(checkpoint.restore(tmp_path / "a", abstract), state)


def test_leaves_of_equal_shape_keep_their_places(tmp_path):
    # Eleven names whose sorted order differs from their order in the tree.
    tall = [jnp.full(2, float(i)) for i in range(11)]
    checkpoint.save(tmp_path / "a", tall)
    chex.assert_trees_all_equal(checkpoint.restore(tmp_path / "a", tall), tall)


def test_saving_again_replaces(state, tmp_path):
    checkpoint.save(tmp_path / "a", state)
    later = jax.tree.map(lambda x: x + 1, state)
    checkpoint.save(tmp_path / "a", later)
    chex.assert_trees_all_equal(checkpoint.restore(tmp_path / "a", state), later)


def test_what_does_not_fit_is_named(state, tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        checkpoint.restore(tmp_path / "none", state)
    checkpoint.save(tmp_path / "a", {"w": jnp.zeros(3), "b": jnp.zeros(2)})
    with pytest.raises(ValueError, match="'leaf.b' is only in the checkpoint"):
        checkpoint.restore(tmp_path / "a", {"w": jnp.zeros(3)})
    with pytest.raises(ValueError, match=r"'leaf.w' is float32\[3\]; float32\[4\] is wanted"):
        checkpoint.restore(tmp_path / "a", {"w": jnp.zeros(4), "b": jnp.zeros(2)})
    with pytest.raises(ValueError, match="differ only in"):
        checkpoint.save(tmp_path / "b", {"w.a": jnp.zeros(3), "w": {"a": jnp.ones(3)}})
    with pytest.raises(ValueError, match="no arrays"):
        checkpoint.save(tmp_path / "b", {})


def test_blocks_are_whole_or_absent(tmp_path):
    store = checkpoint.BlockStore(tmp_path)

    class Bad:
        def __array__(self, *args, **keyed):
            raise OSError("disk full")

    store.write(0, {"a": {"b": np.arange(3)}})
    with pytest.raises(OSError, match="disk full"):
        store.write(1, {"a": Bad()})
    with pytest.raises(RuntimeError), disk.replacing(store.file(2)) as file:
        file.write(b"half")
        raise RuntimeError
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000.npz"]
    chex.assert_trees_all_equal(store.read(0), {"a": {"b": np.arange(3)}})
    assert tree.digest(store.read(0)) == tree.digest({"a": {"b": np.arange(3)}})


def test_blocks_keep_every_type_and_name(tmp_path):
    store = checkpoint.BlockStore(tmp_path)
    block = {
        "file": jnp.arange(3, dtype=jnp.bfloat16),
        "allow_pickle": {"sha256": np.array(True), "a:b": np.zeros((0, 2), np.int8)},
        "scalar": np.float64(3.5),
        "half": np.arange(4, dtype=np.float16),
    }
    store.write(3, block)
    back = store.read(3)
    chex.assert_trees_all_equal(back, jax.tree.map(np.asarray, block))
    assert [x.dtype for x in jax.tree.leaves(back)] == [
        np.asarray(x).dtype for x in jax.tree.leaves(block)
    ]


def test_any_flipped_bit_is_noticed(tmp_path):
    store = checkpoint.BlockStore(tmp_path)
    block = {"a": {"b": np.arange(5.0)}, "c": np.arange(3)}
    store.write(0, block)
    raw = store.file(0).read_bytes()
    for at in range(0, len(raw), 3):
        flipped = bytes([raw[at] ^ 1 << at % 8])
        store.file(0).write_bytes(raw[:at] + flipped + raw[at + 1 :])
        with pytest.raises(disk.DamagedError, match="00000.npz is damaged"):
            store.read(0)
    for content in (b"", raw[:-1], raw[:30], raw + b"0", raw + raw):
        store.file(0).write_bytes(content)
        with pytest.raises(disk.DamagedError, match="00000.npz is damaged"):
            store.read(0)


def test_blocks_of_earlier_versions_have_no_checksum_of_the_file(tmp_path):
    store = checkpoint.BlockStore(tmp_path)
    block = {"a": {"b": np.arange(5.0)}, "c": np.arange(3)}
    store.write(0, block)
    with zipfile.ZipFile(store.file(0), "a") as archive:
        archive.comment = b""
    chex.assert_trees_all_equal(store.read(0), block)
    raw = store.file(0).read_bytes()
    for at in range(0, len(raw), 7):
        store.file(0).write_bytes(raw[:at] + bytes([raw[at] ^ 0x10]) + raw[at + 1 :])
        try:
            back = store.read(0)
        except disk.DamagedError:
            continue
        # What the archive never reads (time stamps, padding) may change; the contents may not.
        assert tree.digest(back) == tree.digest(block), at


def test_the_same_block_is_the_same_file(tmp_path):
    store = checkpoint.BlockStore(tmp_path)
    for number in (0, 1):
        store.write(number, {"a": np.arange(3)})
    assert store.file(0).read_bytes() == store.file(1).read_bytes()


def test_damage_to_any_file_of_a_checkpoint_is_named(state, tmp_path):
    checkpoint.save(tmp_path / "a", state)
    files = [file for file in sorted((tmp_path / "a").rglob("*")) if file.is_file()]
    assert len(files) > 5
    for file in files:
        raw = file.read_bytes()
        for at in sorted({0, len(raw) // 2, len(raw) - 1}) if raw else []:
            file.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << at % 8]) + raw[at + 1 :])
            with pytest.raises(disk.DamagedError, match=f"{file} is damaged"):
                checkpoint.restore(tmp_path / "a", state)
        file.write_bytes(raw)
        if file.name != "checksums.json":
            file.rename(tmp_path / "away")
            with pytest.raises(disk.DamagedError, match=f"a is damaged: .*{file.name} is not"):
                checkpoint.restore(tmp_path / "a", state)
            (tmp_path / "away").rename(file)
    chex.assert_trees_all_equal(checkpoint.restore(tmp_path / "a", state), state)


def test_a_damaged_checkpoint_of_an_earlier_version_is_named(state, tmp_path):
    checkpoint.save(tmp_path / "a", state)
    (tmp_path / "a" / "checksums.json").unlink()
    chex.assert_trees_all_equal(checkpoint.restore(tmp_path / "a", state), state)
    for file in list((tmp_path / "a").rglob("*")):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(disk.DamagedError, match="a is damaged"):
        checkpoint.restore(tmp_path / "a", state)


def test_a_mutated_checkpoint_is_named_and_never_read(state, tmp_path):
    rng = random.Random(0)
    checkpoint.save(tmp_path / "whole", state)
    files = [f.relative_to(tmp_path / "whole") for f in (tmp_path / "whole").rglob("*")]
    files = sorted(f for f in files if (tmp_path / "whole" / f).is_file())
    for number in range(60):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", folder)
        raw = bytearray((folder / rng.choice(files)).read_bytes())  # perhaps of another file
        raw = raw[: rng.choice([len(raw), rng.randrange(len(raw) + 1)])] or bytearray(b"[")
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        (folder / rng.choice(files)).write_bytes(raw)
        with pytest.raises(disk.DamagedError, match=f"{folder}.* is damaged"):
            checkpoint.restore(folder, state)


def test_a_kill_while_replacing_leaves_a_whole_checkpoint(state, tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "a", state)
    later = jax.tree.map(lambda x: x + 1, state)
    rename = Path.rename

    for last in (1, 2):  # renames that happen before the kill
        count = 0

        def stop(self, target, last=last):
            nonlocal count
            count += 1
            if count > last:
                raise KeyboardInterrupt
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", stop)
        with contextlib.suppress(KeyboardInterrupt):
            checkpoint.save(tmp_path / "a", later)
        monkeypatch.undo()
        restored = checkpoint.restore(tmp_path / "a", state)
        assert tree.digest(restored) in (tree.digest(state), tree.digest(later))


def test_shared_trees_are_stored_once_by_their_hash(tmp_path):
    base = {"dense": {"kernel": np.arange(6.0).reshape(2, 3)}, "scale": np.float32(2)}
    digest = checkpoint.store_shared(tmp_path, base)
    (file,) = tmp_path.iterdir()
    stamp = file.stat().st_mtime_ns
    assert checkpoint.store_shared(tmp_path, jax.tree.map(np.copy, base)) == digest
    assert [p.stat().st_mtime_ns for p in tmp_path.iterdir()] == [stamp]
    chex.assert_trees_all_equal(checkpoint.load_shared(tmp_path, digest), base)
    assert checkpoint.store_shared(tmp_path, {"scale": np.float32(3)}) != digest
    with pytest.raises(FileNotFoundError):
        checkpoint.load_shared(tmp_path, "0" * 64)
    (tmp_path / f"{'1' * 64}.npz").write_bytes(file.read_bytes())
    with pytest.raises(disk.DamagedError, match="another hash"):
        checkpoint.load_shared(tmp_path, "1" * 64)
