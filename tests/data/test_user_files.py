import jax
import numpy as np
import pytest
from PIL import Image

from jaxunlearn import data

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
        ({"x": np.array([None] * 8), "y": Y}, "cannot be read as an .npz file of arrays: Object"),
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
