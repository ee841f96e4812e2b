import collections

import jax
import numpy as np
import pytest
from PIL import Image

from benchmarks.corruptions import photos
from benchmarks.peers import numpy_corruptions
from jaxunlearn.data import corruptions

KEY = jax.random.key(0)
PHOTOS = photos(32, 12)
NOISE = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
GREY = np.repeat(NOISE[..., :1], 3, axis=3)
FLAT = np.repeat(np.repeat(NOISE[:, :4, :4], 8, axis=1), 8, axis=2)


def some_quick(names, *quick):
    """Parameters of which the others than `quick` are slow: each is programs of its own."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


FAMILIES = pytest.mark.parametrize("family", corruptions.FAMILIES)
DETERMINISTIC = (
    "defocus_blur",
    "zoom_blur",
    "brightness",
    "contrast",
    "pixelate",
    "gaussian_blur",
)
ON_DEVICE = [name for name in corruptions.NAMES if name != "spatter"]


def apply(name, images, severity, key=KEY, family="cifar", **options):
    return np.asarray(corruptions.apply(name, images, severity, key, family, **options))


def peer(name, images, severity, family, seed=0):
    c, rng = corruptions.constants(name, family, severity), np.random.RandomState(seed)
    return np.stack([numpy_corruptions.corrupted(name, image, c, rng) for image in images])


def test_the_names_are_those_of_the_published_sets_in_their_order():
    names = (
        "gaussian_noise shot_noise impulse_noise defocus_blur glass_blur motion_blur zoom_blur "
        "snow frost fog brightness contrast elastic_transform pixelate jpeg_compression "
        "speckle_noise gaussian_blur spatter saturate"
    )
    assert list(corruptions.NAMES) == names.split()


@FAMILIES
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_what_draws_nothing_equals_the_published_arithmetic(name, family):
    # A level of difference, where rounding decides whether a whole level is reached: weights of
    # 1e-6 and the disk's sum, 1e-9 off 1, in the mildest blurs of flat skies.
    for severity in range(1, 6):
        for images in (PHOTOS, NOISE, GREY):
            theirs = peer(name, images, severity, family).astype(int)
            gap = np.abs(apply(name, images, severity, family=family) - theirs)
            allowed = 0.04 if severity == 1 and name.endswith("blur") else 0.004
            assert gap.max() <= 1 and (gap > 0).mean() <= allowed, (severity, (gap > 0).mean())


def test_flat_regions_are_cut_as_published():
    for name in ("defocus_blur", "zoom_blur", "gaussian_blur", "pixelate"):
        levels = np.arange(256, dtype=np.uint8)[:, None, None, None]
        images = np.broadcast_to(levels, (256, 5, 5, 3))
        theirs = peer(name, images, 5, "cifar")
        assert (apply(name, images, 5) != theirs).mean() < 0.01, name


def test_saturation_differs_by_a_level_at_most():
    for severity in range(1, 6):
        gap = np.abs(
            apply("saturate", NOISE, severity)
            - peer("saturate", NOISE, severity, "cifar").astype(int)
        )
        assert gap.max() <= 1 and (gap > 0).mean() < 0.05
    grey = peer("saturate", GREY, 5, "imagenet")  # becomes red
    assert (apply("saturate", GREY, 5, family="imagenet") == grey).all()


@FAMILIES
def test_jpeg_is_nearly_libjpegs(family):
    for severity in (1, 5):
        exact = corruptions.jpeg_exact(PHOTOS, severity, family)
        np.testing.assert_array_equal(exact, peer("jpeg_compression", PHOTOS, severity, family))
        near = apply("jpeg_compression", PHOTOS, severity, family=family)
        assert np.abs(near.astype(int) - exact).mean() < 0.4
        assert np.abs(PHOTOS.astype(int) - exact).mean() > 2


def moments(images, clean):
    """Means of the channels, and of the change: deviations and correlations [9]."""
    change = images - clean.astype(float)

    def correlation(a, b):
        return np.corrcoef(a.ravel(), b.ravel())[0, 1] if a.std() * b.std() > 0 else 0.0

    return np.array(
        [
            *images.mean((0, 1, 2)) / 3,  # within 3 levels
            images.std() / 3,
            change.std() / 1.5,
            20 * correlation(change[:, 1:], change[:, :-1]),  # within .05
            20 * correlation(change[:, :, 1:], change[:, :, :-1]),
            15 * correlation(change[:, :, 4:], change[:, :, :-4]),
            15 * correlation(change[..., 0], change[..., 2]),
        ]
    )


@pytest.mark.parametrize("family", some_quick(corruptions.FAMILIES, "cifar"))
@pytest.mark.parametrize(
    ("name", "n"),
    [
        ("gaussian_noise", 100),
        ("shot_noise", 100),
        ("impulse_noise", 100),
        ("glass_blur", 60),
        ("motion_blur", 400),
        ("snow", 400),
        ("fog", 800),
        ("elastic_transform", 400),
        ("speckle_noise", 100),
    ],
)
def test_what_draws_has_the_published_moments(name, n, family):
    clean = np.repeat(PHOTOS[1:2], n, axis=0)
    ours = moments(apply(name, clean, 4, family=family), clean)
    theirs = moments(peer(name, clean, 4, family), clean)
    np.testing.assert_allclose(ours, theirs, atol=1)


def test_frost_takes_crops_of_photos(tmp_path):
    rng = np.random.default_rng(0)
    ice = rng.integers(0, 256, (200, 165, 3), dtype=np.uint8)
    Image.fromarray(ice).save(tmp_path / "a.png")
    black = np.zeros((20, 32, 32, 3), np.uint8)
    fifth = ice[2::5, 2::5]
    crops = {
        (fifth[i : i + 32, j : j + 32] * np.float32(0.45)).astype(np.uint8).tobytes()
        for i in range(len(fifth) - 31)
        for j in range(fifth.shape[1] - 31)
    }
    made = apply("frost", black, 5, frost_folder=tmp_path)
    assert all(image.tobytes() in crops for image in made) and len({i.tobytes() for i in made}) > 4
    with pytest.raises(ValueError, match="at least 320x320 for images of 64x64"):
        apply("frost", np.zeros((1, 64, 64, 3), np.uint8), 5, frost_folder=tmp_path)
    with pytest.raises(ValueError, match="which is no folder"):
        apply("frost", black, 5, frost_folder=tmp_path / "b")
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match="it holds no .png"):
        apply("frost", black, 5, frost_folder=tmp_path)


def test_ice_looks_like_the_published_photos():
    black = np.zeros((200, 32, 32, 3), np.uint8)
    ice = apply("frost", black, 5) / 0.45
    np.testing.assert_allclose(ice.mean((0, 1, 2)), [146, 167, 179], atol=6)
    assert 15 < ice.std((1, 2)).mean() < 30


@pytest.mark.parametrize("name", some_quick(ON_DEVICE, "shot_noise", "glass_blur", "motion_blur"))
def test_images_draw_by_their_own_keys(name):
    keys = jax.random.split(KEY, 5)
    together = apply(name, PHOTOS[:5], 2.5, keys)
    one_by_one = [apply(name, PHOTOS[i : i + 1], 2.5, keys[i : i + 1])[0] for i in range(5)]
    np.testing.assert_array_equal(together, one_by_one)
    np.testing.assert_array_equal(together, apply(name, PHOTOS[:5], 2.5, keys))
    same = apply(name, np.repeat(PHOTOS[:1], 2, axis=0), 5)
    is_random = name not in (*DETERMINISTIC, "jpeg_compression", "saturate")
    assert (same[0] != same[1]).any() == is_random


def test_one_key_gives_image_i_the_key_folded_with_i():
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(np.arange(12))
    one = apply("snow", PHOTOS, 3)
    np.testing.assert_array_equal(one, apply("snow", PHOTOS, 3, keys))
    np.testing.assert_array_equal(one, apply("snow", PHOTOS, 3, jax.random.PRNGKey(0)))


def test_spatter_is_made_on_the_host():
    once, again = (apply("spatter", PHOTOS, 2) for _ in range(2))
    np.testing.assert_array_equal(once, again)
    assert (apply("spatter", PHOTOS[:1], 2) == once[:1]).all()
    np.testing.assert_array_less(-1, once.astype(int) - PHOTOS)  # water only brightens
    with pytest.raises(ValueError, match="spatter is made on the host"):
        jax.jit(lambda x: corruptions.apply("spatter", x, 2, KEY))(PHOTOS)


@pytest.mark.parametrize("family", some_quick(corruptions.FAMILIES, "cifar"))
def test_severities_grow(family):
    names = (
        "gaussian_noise shot_noise impulse_noise motion_blur zoom_blur fog brightness contrast "
        "pixelate jpeg_compression speckle_noise gaussian_blur defocus_blur"
    )
    for name in names.split():
        changes = [
            np.abs(apply(name, PHOTOS, severity, family=family).astype(int) - PHOTOS).mean()
            for severity in range(1, 6)
        ]
        assert (np.diff(changes) >= 0).all(), (name, changes)


def test_constants_lie_on_lines_between_severities():
    for name in corruptions.NAMES:
        low, middle, high = (corruptions.constants(name, "imagenet", s) for s in (3, 3.25, 4))
        np.testing.assert_allclose(middle, 0.75 * low + 0.25 * high, rtol=1e-12)
    assert corruptions.constants("snow", "cifar", 5).tolist() == [0.3, 0.3, 1.25, 0.65, 14, 12, 0.8]


def test_sizes_that_are_no_power_of_two():
    images = photos(5, 2)
    for name in ("fog", "pixelate", "jpeg_compression"):
        assert apply(name, images, 3, family="imagenet").shape == images.shape, name


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 8, 24, 33])
@FAMILIES
def test_any_square_size(size, family):
    images = photos(size, 2)
    for name in corruptions.NAMES:
        made = apply(name, images, 3, family=family)
        assert made.shape == images.shape and made.dtype == np.uint8, name


def test_another_severity_is_no_other_program():
    compiled = collections.Counter()

    def listen(event, duration, **_):
        compiled[event] += "compile" in event

    apply("glass_blur", PHOTOS, 1)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for severity in (2, 3.3, 5):
            apply("glass_blur", PHOTOS, severity)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not compiled["/jax/core/compile/backend_compile_duration"]


def test_many_images_go_in_blocks(monkeypatch):
    whole = apply("snow", PHOTOS, 3)
    monkeypatch.setattr("jaxunlearn.data.corruptions._apply._BLOCK", 5 * 32 * 32 * 3)
    np.testing.assert_array_equal(apply("snow", PHOTOS, 3), whole)


def test_it_can_be_part_of_a_program():
    program = jax.jit(lambda x, key: corruptions.apply("impulse_noise", x, 3, key))
    np.testing.assert_array_equal(program(PHOTOS, KEY), apply("impulse_noise", PHOTOS, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rain", PHOTOS, 1, KEY), "corruption is 'rain'; gaussian_noise, shot_noise"),
        (("fog", PHOTOS, 0, KEY), "severity is 0; it must be at least 1"),
        (("fog", PHOTOS, 5.5, KEY), "severity is 5.5; 1 to 5 are allowed"),
        (("fog", PHOTOS, float("nan"), KEY), "severity is nan"),
        (("fog", PHOTOS, "5", KEY), "severity is '5'; a number is needed"),
        (("fog", PHOTOS, 5, KEY, "svhn"), "family is 'svhn'; cifar, imagenet are allowed"),
        (("fog", PHOTOS / 255, 5, KEY), "images are float64; uint8 is needed"),
        (("fog", PHOTOS[0], 5, KEY), r"images are \[32, 32, 3\]; square ones \[N, H, H, 3\]"),
        (("fog", PHOTOS[:, :16], 5, KEY), r"images are \[12, 16, 32, 3\]; square ones"),
        (("fog", PHOTOS[..., :1], 5, KEY), r"images are \[12, 32, 32, 1\]; square ones"),
        (("fog", PHOTOS[:0], 5, KEY), "at least one is needed"),
        (("fog", PHOTOS, 5, jax.random.split(KEY, 3)), r"key has shape \[3\]; one key, or \[12\]"),
        (("fog", PHOTOS, 5, 0), "key is 0; a key of JAX is needed"),
    ],
)
def test_what_cannot_be_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        corruptions.apply(*arguments)
