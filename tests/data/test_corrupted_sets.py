import jax
import numpy as np
import pytest

from jaxunlearn import data
from jaxunlearn.data import corruptions

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).integers(0, 256, (20, 6, 6, 3), dtype=np.uint8)  # 4 a severity
LABELS = np.tile(np.arange(4), 5)


@pytest.fixture
def cifar_c(tmp_path):
    np.save(tmp_path / "fog.npy", IMAGES)
    np.save(tmp_path / "labels.npy", LABELS)
    return tmp_path


def test_a_severity_of_a_cifar_c_folder_is_mapped(cifar_c):
    for severity in range(1, 6):
        images, labels = corruptions.from_cifar_c(cifar_c, "fog", severity)
        np.testing.assert_array_equal(images, IMAGES[4 * (severity - 1) : 4 * severity])
        assert labels.tolist() == [0, 1, 2, 3] and labels.dtype == np.int32
    assert isinstance(images, np.memmap)
    assert len(corruptions.from_cifar_c(str(cifar_c), "fog", 5, n=3).labels) == 3
    np.save(cifar_c / "labels.npy", LABELS[:4].astype(np.uint8))  # once for all severities
    assert corruptions.from_cifar_c(cifar_c, "fog", 2).labels.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"name": "frost"}, r"frost.npy is not there; .npy files of .*: fog, labels"),
        ({"severity": 6}, "severity is 6; 1, 2, 3, 4, 5 are allowed"),
        ({"severity": 2.5}, "severity is 2.5; 1, 2, 3, 4, 5"),
        ({"n": 5}, "n is 5; 1 to 4 are allowed"),
        ({"n": 0}, "n is 0"),
        (
            {"fog": IMAGES[:, ::2] / 255},
            r"fog.npy is float64\[20, 3, 6, 3\]; uint8 \[5 M, H, W, 3\]",
        ),
        ({"fog": IMAGES[:9]}, r"uint8\[9, 6, 6, 3\]"),
        ({"labels": LABELS[:7]}, r"labels.npy is int64\[7\]; integers \[20\] or \[4\]"),
        ({"labels": LABELS + 0.5}, "labels.npy is float64"),
        ({"fog": np.array([{}], object)}, "fog.npy cannot be read as an array"),
    ],
)
def test_a_broken_cifar_c_folder_is_named(cifar_c, broken, message):
    for file in ("fog", "labels"):
        if file in broken:
            np.save(cifar_c / f"{file}.npy", broken.pop(file), allow_pickle=True)
    with pytest.raises(ValueError, match=message):
        corruptions.from_cifar_c(cifar_c, **{"name": "fog", "severity": 1} | broken)


def test_a_cut_file_is_named(cifar_c):
    whole = (cifar_c / "fog.npy").read_bytes()
    (cifar_c / "fog.npy").write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="fog.npy"):
        corruptions.from_cifar_c(cifar_c, "fog", 5)


@pytest.mark.parametrize("group", ["", "weather/"])
def test_an_imagenet_c_folder(make_folder, group):
    folder, images = make_folder((f"{group}fog/3",), ("n01", "n02"), n=2, shape=(6, 6, 3))
    found = corruptions.from_imagenet_c(folder, "fog", 3)
    wanted = [*images[f"{group}fog/3", "n01"], *images[f"{group}fog/3", "n02"]]
    np.testing.assert_array_equal(found.images, wanted)
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert corruptions.from_imagenet_c(folder, "fog", 3, size=4).images.shape == (4, 4, 4, 3)
    with pytest.raises(ValueError, match="has no folder fog/4"):
        corruptions.from_imagenet_c(folder, "fog", 4)
    with pytest.raises(ValueError, match="severity is 0"):
        corruptions.from_imagenet_c(folder, "fog", 0)


def test_any_set_is_corrupted_on_the_fly():
    digits = data.load("digits")
    clean = corruptions.from_dataset(digits, "none", 1, KEY, n=20)
    np.testing.assert_array_equal(clean.images, np.round(255 * digits.x_val[:20]))
    found = corruptions.from_dataset(digits, "contrast", 5, KEY, n=20)
    assert found.images.shape == (20, 8, 8, 1) and found.images.dtype == np.uint8
    np.testing.assert_array_equal(found.labels, digits.y_val[:20])
    colour = corruptions.apply("contrast", np.repeat(clean.images, 3, axis=3), 5, KEY)
    np.testing.assert_array_equal(found.images, np.asarray(colour)[..., :1])
    trained = corruptions.from_dataset(digits, "none", 1, KEY, part="train")
    assert len(trained.images) == len(digits.x_train)


def test_a_set_that_cannot_be_corrupted_is_named():
    digits = data.load("digits")
    with pytest.raises(ValueError, match="corruption is 'rain'; none, gaussian_noise"):
        corruptions.from_dataset(digits, "rain", 1, KEY)
    with pytest.raises(ValueError, match="part is 'test'; train, val are allowed"):
        corruptions.from_dataset(digits, "fog", 1, KEY, part="test")
    with pytest.raises(ValueError, match="n is 1000; 1 to 597 are allowed"):
        corruptions.from_dataset(digits, "fog", 1, KEY, n=1000)
    two = digits.__class__(
        "two", *[np.zeros((2, 4, 4, 2), np.uint8), np.arange(2)] * 2, n_classes=2
    )
    with pytest.raises(ValueError, match="two has 2 channels; 1 or 3 can be corrupted"):
        corruptions.from_dataset(two, "fog", 1, KEY)
