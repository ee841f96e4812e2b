import os
import struct
import subprocess
import sys
import zlib

import jax
import numpy as np
import pytest
from PIL import Image, ImageOps

from jaxunlearn import data
from jaxunlearn.comparison.weights import network_for

X = np.random.default_rng(0).integers(0, 256, (8, 4, 5, 3), dtype=np.uint8)
Y = np.arange(8) % 3


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_a_split_npz(tmp_path):
    path = save(tmp_path / "a.npz", x_train=X, y_train=Y, x_val=X[:2], y_val=Y[:2])
    found = data.load(str(path))
    np.testing.assert_array_equal(found.x_train, X)
    np.testing.assert_array_equal(found.y_val, Y[:2])
    assert found.n_classes == 3 and found.x_val.dtype == np.uint8 and found.y_val.dtype == np.int32
    assert not (tmp_path / "cache").exists()


def test_a_whole_npz_is_split_by_a_fixed_permutation(tmp_path):
    path = save(tmp_path / "a.npz", x=X[..., 0] / 255, y=Y)
    found, order = data.load(path, 5), np.random.default_rng(0).permutation(8)
    assert found.x_train.shape == (5, 4, 5, 1) and found.x_train.dtype == np.float32
    np.testing.assert_array_equal(found.y_train, Y[order[:5]])
    np.testing.assert_array_equal(found.y_val, Y[order[5:]])
    np.testing.assert_array_equal(data.load(path, 5, 2).y_val, Y[order[5:7]])
    for n_val, n_train in ((None, 6), (1, 6), (3, 5), (7, 1)):  # four fifths, or what is left
        assert len(data.load(path, None, n_val).x_train) == n_train
    whole = data.load(path)
    np.testing.assert_array_equal(whole.rows_train, order[:6])
    np.testing.assert_array_equal(whole.rows_val, order[6:])
    assert whole.sizes == {"all": 8}
    with pytest.raises(ValueError, match="n_val is 8; .* 1 to 7"):
        data.load(path, None, 8)
    for sizes, message in (((8,), "n_train is 8; .* 1 to 7"), ((5, 4), "n_val is 4; .* 1 to 3")):
        with pytest.raises(ValueError, match=message):
            data.load(path, *sizes)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X}, r"holds \['x'\]; x_train, y_train, x_val and y_val, or x and y, are needed"),
        ({"x": X, "y": Y / 2}, r"y of .* is float64\[8\]; integers"),
        ({"x": X, "y": Y[:7]}, "has 8 x but 7 y"),
        ({"x": X, "y": Y - 1}, r"lies in \[-1, 1\]; labels count from 0"),
        ({"x": X, "y": np.full(8, 2**40)}, "labels count from 0"),
        ({"x": X[0, 0], "y": Y[:5]}, r"x of .* is \[5, 3\]; images"),
        ({"x": X[:0], "y": Y[:0]}, r"x of .* is \[0, 4, 5, 3\]"),
        ({"x": X.astype(np.int64), "y": Y}, "x of .* is int64; uint8, or floats"),
        ({"x": X / 1.0, "y": Y}, "floats must lie in"),
        ({"x": np.where(X == X[0, 0, 0, 0], np.nan, X / 255), "y": Y}, "x of .* holds NaN"),
        (
            {"x": np.array([None] * 8), "y": Y},
            "cannot be read as an .npz file of arrays: x: Object",
        ),
        ({"x_train": X, "y_train": Y, "x_val": X[:, :3], "y_val": Y}, "they must be alike"),
        ({"x": X, "y": Y + 1}, "has 3 different labels from 1 to 3"),
        ({"x": X, "y": Y * 1000}, "has 3 different labels from 0 to 2000"),
        ({"x": X, "y": 0 * Y}, "has 1 different labels"),
        ({"x_train": X, "y_train": Y, "x_val": X, "y_val": Y + 1}, "the label 3 in y_val"),
    ],
)
def test_bad_npz(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=message):
        data.load(save(tmp_path / "a.npz", **arrays), 4)


def test_damaged_and_foreign_npz(tmp_path):
    path = save(tmp_path / "a.npz", x=X, y=Y)
    whole = path.read_bytes()
    for content in (whole[:-10], whole[: len(whole) // 2], b"", b"hello" * 100):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{path} cannot be read as an .npz file"):
            data.load(path, 4)
    flipped = bytearray(whole)
    flipped[300] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(ValueError, match=f"{path} cannot be read as an .npz file"):
        data.load(path, 4)


def test_a_split_folder(make_folder):
    folder, images = make_folder(classes=("dog", "cat"))
    (folder / ".hidden").write_text("")
    found = data.load(folder)
    for split, x, y in (
        ("train", found.x_train, found.y_train),
        ("test", found.x_val, found.y_val),
    ):
        np.testing.assert_array_equal(
            x, np.concatenate([images[split, "cat"], images[split, "dog"]])
        )
        np.testing.assert_array_equal(y, [0, 0, 0, 1, 1, 1])
    assert found.n_classes == 2 and found.x_train.dtype == np.uint8


def test_a_whole_folder_of_grey_images(make_folder):
    folder, images = make_folder(splits=("",), shape=(6, 5, 1))
    found, order = data.load(str(folder), 4), np.random.default_rng(0).permutation(6)
    stored = np.concatenate([images["", "cat"], images["", "dog"]])
    np.testing.assert_array_equal(found.x_train, stored[order[:4]])
    np.testing.assert_array_equal(found.x_val, stored[order[4:]])
    whole = data.load(folder)
    assert len(whole.x_train) == 4 and whole.sizes == {"all": 6}
    assert whole.rows_train is not None
    files = [f"{('cat', 'dog')[row // 3]}/{row % 3:03d}.png" for row in whole.rows_train]
    assert list(whole.files_train) == files


def test_jpeg_and_palettes(make_folder):
    folder, _ = make_folder(splits=("val", "train"))
    image = Image.open(folder / "train/cat/000.png")
    image.save(folder / "train/cat/000.jpg")
    image.quantize(4).save(folder / "train/cat/001.png")
    assert data.load(folder).x_train.shape == (7, 6, 5, 3)


def resize(folder):
    Image.open(folder / "train/dog/001.png").resize((7, 9)).save(folder / "train/dog/001.png")


def grey(folder):
    Image.open(folder / "train/dog/001.png").convert("L").save(folder / "train/dog/001.png")


def deep(folder):
    Image.fromarray(np.zeros((6, 5), np.uint16)).save(folder / "train/dog/001.png")


def cut(folder):
    path = folder / "train/dog/001.png"
    path.write_bytes(path.read_bytes()[:-60])


def strange(folder):
    (folder / "train/dog/001.png").write_bytes(b"hello")


def other(folder):
    (folder / "train/dog/notes.txt").write_text("hello")


def beside(folder):
    (folder / "train/notes.txt").write_text("hello")


def unheld(folder):
    (folder / "test").rename(folder / "held")


def new_class(folder):
    (folder / "test/dog").rename(folder / "test/emu")


def empty(folder):
    (folder / "train/ant").mkdir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (resize, r"dog.001.png is 7x9 with 3 channels, but .*cat.000.png is 5x6 with .* resize"),
        (grey, r"dog.001.png is 5x6 with 1 channel, but .*cat.000.png is 5x6 with 3 channels"),
        (deep, r"dog.001.png cannot be decoded: its mode is I;16; 8-bit"),
        (cut, r"dog.001.png cannot be decoded: "),
        (strange, r"dog.001.png cannot be decoded: it is no PNG or JPEG"),
        (other, r"notes.txt is no .png, .jpg, .jpeg file"),
        (beside, r"notes.txt lies beside the folders of the classes"),
        (unheld, "a folder train, but none of test, val, validation"),
        (new_class, "the class 'emu' in test only"),
        (empty, "ant holds no images"),
    ],
)
def test_bad_folders(make_folder, own_cache, change, message):
    folder, _ = make_folder()
    change(folder)
    with pytest.raises(ValueError, match=message):
        data.load(folder)
    assert not list(own_cache.glob("pets-*"))


def test_an_empty_folder(tmp_path):
    with pytest.raises(ValueError, match="holds no folders of images"):
        data.load(tmp_path)


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_scaling_is_bilinear(tmp_path, kind):
    x = X if kind is np.uint8 else (X / 255).astype(kind)
    path = save(tmp_path / "a.npz", x_train=x, y_train=Y, x_val=x, y_val=Y)
    for size in (3, 4, 11):
        found = data.load(path, size=size)
        expected = jax.image.resize(x.astype(np.float32), (8, size, size, 3), "bilinear")
        assert found.x_train.dtype == kind and found.x_train.shape == (8, size, size, 3)
        np.testing.assert_allclose(
            found.x_train, expected, atol=0.501 if kind is np.uint8 else 1e-5
        )
    with pytest.raises(ValueError, match="size is 0; it must be at least 1"):
        data.load(path, size=0)
    with pytest.raises(ValueError, match="default_size is 0; it must be at least 1"):
        data.load(path, default_size=0)


def test_folders_are_scaled_when_they_are_decoded_and_kept_by_size(tmp_path):
    for i, name in enumerate("ab"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for j in range(3):
            shape = (5 + i, 6 + j, 3)
            pixels = np.random.default_rng((i, j)).integers(0, 256, shape, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{j}.png")
    with pytest.raises(ValueError, match="must have one size, .* give `size`"):
        data.load(tmp_path / "pets", 4, cache_dir=tmp_path / "cache")
    found = {
        size: data.load(tmp_path / "pets", 4, size=size, cache_dir=tmp_path / "cache")
        for size in (4, 7, 4)
    }
    for size, own in found.items():
        assert own.x_train.shape == (4, size, size, 3)
        file = tmp_path / "pets" / own.files_train[0]
        np.testing.assert_array_equal(
            data.images([file], (size, size, 3), resize=True)[0], own.x_train[0]
        )
    assert len(list((tmp_path / "cache").glob("pets-*/entry.json"))) == 2


@pytest.mark.parametrize(
    ("stored", "turned", "found"),
    [
        ([(6, 5), (6, 5), (6, 5)], (), None),
        ([(6, 5), (6, 5), (7, 5)], (), "5x6 and 5x7 among them; all are scaled to 4x4"),
        ([(6, 5), (5, 6), (6, 5)], (1,), None),
        ([(6, 5), (6, 5), (6, 5)], (1,), "5x6 and 6x5 among them; all are scaled to 4x4"),
    ],
)
@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_the_default_size_is_for_folders_of_several(
    tmp_path, own_cache, capsys, ending, stored, turned, found
):
    for i, shape in enumerate(stored):
        (tmp_path / "pets" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[274] = 6 if i in turned else 1
        file = tmp_path / "pets" / "ab"[i % 2] / f"{i}.{ending}"
        Image.fromarray(np.full((*shape, 3), 90, np.uint8)).save(file, exif=exif)
    loaded = data.load(tmp_path / "pets", default_size=4)
    assert loaded.size == (4 if found else None)
    assert loaded.x_train.shape[1:3] == ((4, 4) if found else (6, 5))
    err = capsys.readouterr().err
    assert found in err if found else "several sizes" not in err
    assert data.load(tmp_path / "pets", size=3, default_size=4).size == 3
    assert "several sizes" not in capsys.readouterr().err


def save_png(file, x, **more):
    Image.fromarray(x).save(file, **more)
    return file


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_pictures_are_turned_upright(tmp_path, orientation, ending):
    exif = Image.Exif()
    exif[274] = orientation
    file = tmp_path / f"a.{ending}"
    Image.fromarray(X[0]).save(file, exif=exif)
    with Image.open(file) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(data.images([file], upright.shape)[0], upright)


@pytest.mark.parametrize("ending", ["png", "jpg"])
@pytest.mark.parametrize("block", [b"no header", b"II*\0", b"II*\0\x08\0\0\0\xff\xff\x12"])
def test_broken_exif_data_turn_nothing(tmp_path, ending, block):
    files = [tmp_path / f"{name}.{ending}" for name in "ab"]
    Image.fromarray(X[0]).save(files[0])
    Image.fromarray(X[0]).save(files[1], exif=b"Exif\0\0" + block)
    plain, broken = data.images(files, X[0].shape)
    np.testing.assert_array_equal(broken, plain)


def test_transparency_is_alpha_however_it_is_stored(tmp_path):
    hidden = np.zeros((4, 4), np.uint8)
    hidden[2:] = 1
    palette = Image.fromarray(hidden, "L").convert("P")
    palette.putpalette([255, 0, 0, 0, 0, 255] + [0] * 762)
    colours = np.zeros((4, 4, 3), np.uint8)
    colours[:2, :, 0], colours[2:, :, 2] = 255, 255
    grey = Image.fromarray(hidden * 200)
    alpha = Image.fromarray(hidden * 255)
    palette.save(tmp_path / "palette.png", transparency=0)
    save_png(tmp_path / "rgb.png", colours, transparency=(255, 0, 0))
    grey.save(tmp_path / "grey.png", transparency=0)
    Image.merge("LA", (grey, alpha)).save(tmp_path / "la.png")
    Image.fromarray(hidden * 255).convert("1").save(tmp_path / "bits.png", transparency=0)
    for file in sorted(tmp_path.glob("*.png")):
        (image,) = data.images([file], (4, 4, 4))
        np.testing.assert_array_equal(image[..., 3], 255 * hidden, err_msg=file.name)
        with pytest.raises(ValueError, match=f"{file.name} is 4x4 with 4 channels"):
            data.images([file], (4, 4, 3))


def test_an_opaque_alpha_changes_nothing(make_folder, tmp_path):
    folder, _ = make_folder()
    plain = data.load(folder, cache_dir=tmp_path / "plain")
    for name in ("train/cat/001.png", "test/dog/002.png"):
        Image.open(folder / name).convert("RGBA").save(folder / name)
    for array, other in zip(plain.arrays, data.load(folder).arrays, strict=True):
        np.testing.assert_array_equal(array, other)
    Image.open(folder / "train/cat/000.png").convert("RGBA").save(folder / "train/cat/000.png")
    found = data.load(folder)  # the first image has one, so all do
    np.testing.assert_array_equal(found.x_train[..., :3], plain.x_train)
    assert (found.x_train[..., 3] == 255).all()
    assert network_for("mlp", 0, found) is not None
    mean, std = data.augment.channel_statistics(found.x_train)
    assert mean[3] == 1 and std[3] == 1


def png_of_16_bits(x, kind):
    """A PNG of uint16 [H, W, C], which Pillow does not write in colour."""

    def chunk(name, body):
        check = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + check

    head = struct.pack(">IIBBBBB", x.shape[1], x.shape[0], 16, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in x)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.mark.parametrize(("kind", "n_channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_16_bits_are_refused(tmp_path, kind, n_channels):
    file = tmp_path / "deep.png"
    file.write_bytes(png_of_16_bits(np.full((4, 4, n_channels), 200, np.uint16), kind))
    with pytest.raises(ValueError, match="deep.png cannot be .*(its mode is I;16|16 bits)"):
        data.images([file], (4, 4, 3))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 24, 32), (4, 9, 7), (12, 64, 64)])
def test_channels_first_is_named(tmp_path, shape):
    path = save(tmp_path / "a.npz", x=np.zeros((8, *shape), np.uint8), y=Y)
    with pytest.raises(ValueError, match=r"x of .*\[n, C, H, W\]; .* x.transpose\(0, 2, 3"):
        data.load(path, 4)
    last = np.zeros((8, *shape), np.uint8).transpose(0, 2, 3, 1)
    save(path, x=last, y=Y)
    assert data.load(path, 4).x_train.shape[1:] == last.shape[1:]


@pytest.mark.parametrize("shape", [(4, 4, 256), (1, 1, 512), (32, 32, 3), (2, 9, 4), (16, 12, 60)])
def test_channels_last_is_not_mistaken(tmp_path, shape):
    path = save(tmp_path / "a.npz", x=np.zeros((8, *shape), np.uint8), y=Y)
    assert data.load(path, 4).x_train.shape[1:] == shape


def test_numbered_classes_are_counted_as_numbers(make_folder, capsys):
    folder, _ = make_folder(splits=("",), classes=tuple(map(str, range(11))), n=2)
    found = data.load(folder, 12)
    assert found.classes == tuple(map(str, range(11)))
    for file, label in zip(found.files_train, found.y_train, strict=True):
        assert file.split("/")[0] == str(label)
    assert "classes are counted" not in capsys.readouterr().err
    folder, _ = make_folder(splits=("",), classes=("1", "2", "10"), name="from-one")
    assert data.load(folder, 6).classes == ("1", "2", "10")
    assert "class 0 is the folder '1'" in capsys.readouterr().err
    folder, _ = make_folder(splits=("",), classes=("c2", "c10"), name="words")
    assert data.load(folder, 4).classes == ("c10", "c2")


def test_what_is_not_read_is_said(make_folder, make_prepared, tmp_path, capsys):
    folder, _ = make_folder(splits=("train", "val", "test", "extra"))
    assert len(data.load(folder).x_val) == 6
    assert "train and test are read; extra, val is not" in capsys.readouterr().err
    prepared, _ = make_prepared(splits=("train", "test", "validation"), shards=((4,), (2,), (1,)))
    data.load("tiny", data_dir=prepared)
    assert "train and test are read; validation is not" in capsys.readouterr().err
    data.load(save(tmp_path / "a.npz", x=X, y=Y, x_test=X), 4)
    assert "also holds ['x_test'], which is not read" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["train/cat/link.png", "train/emu", "extra"])
def test_broken_links_are_named(make_folder, tmp_path, place):
    folder, _ = make_folder()
    (folder / place).symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match=f"{place} is a link to '.*gone', which is not there"):
        data.load(folder)


def test_folders_and_pipes_are_no_images(make_folder):
    folder, _ = make_folder()
    (folder / "train/cat/a.png").mkdir()
    with pytest.raises(ValueError, match="a.png is no file"):
        data.load(folder)
    (folder / "train/cat/a.png").rmdir()
    os.mkfifo(folder / "train/cat/a.png")
    with pytest.raises(ValueError, match="a.png is no file"):
        data.load(folder)


def test_images_beyond_the_machines_memory(make_folder, monkeypatch):
    folder, _ = make_folder()
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 1000}.__getitem__)
    with pytest.raises(ValueError, match=r"pets: its 12 images .* more than this machine's memory"):
        data.load(folder)


def test_scaling_a_large_picture_takes_no_more_than_twice_its_room():
    program = """
import resource, numpy as np
from jaxunlearn.data._decode import scaled
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
image = np.full((4096, 4096, 4), 7, np.uint8)
scaled(image[:8, :8], 4, 4)
before = peak()
assert (scaled(image, 16, 16) == 7).all()
print((peak() - before) / image.nbytes)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert float(run.stdout) < 2, run.stderr
