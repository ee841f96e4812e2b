import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn import core, data
from jaxunlearn.data import augment
from jaxunlearn.data.augment import compose, cutout, flip, normalise, translate

KEY = jax.random.key(0)
shapes = st.sampled_from([(1, 3, 4, 1), (6, 5, 4, 3)])  # each is another program
AMOUNTS = ("rotation", "zoom", "translation", "brightness", "sequential")
affine, warp = jax.jit(augment.affine), jax.jit(augment.warp, static_argnames=AMOUNTS)


shift, hole = (jax.jit(step, static_argnums=2) for step in (translate, cutout))


def images_of(shape, dtype=np.uint8):
    """Images without a zero, so that what was filled in shows."""
    pixels = np.random.default_rng(0).integers(1, 256, shape, dtype=np.uint8)
    return pixels if dtype == np.uint8 else (pixels / 255).astype(dtype)


def shifted(image, down, right):
    out = np.zeros_like(image)
    height, width = image.shape[:2]
    for i in range(height):
        for j in range(width):
            if 0 <= i - down < height and 0 <= j - right < width:
                out[i, j] = image[i - down, j - right]
    return out


def holed(image, row, column, size):
    out = image.copy()
    for i in range(row - size // 2, row - size // 2 + size):
        for j in range(column - size // 2, column - size // 2 + size):
            if 0 <= i < image.shape[0] and 0 <= j < image.shape[1]:
                out[i, j] = 0
    return out


def assert_one_of(result, image, candidates):
    assert result.dtype == image.dtype and result.shape == image.shape
    assert any(np.array_equal(result, candidate) for candidate in candidates)


@settings(max_examples=5)
@given(shapes, st.sampled_from([np.uint8, np.float32]), st.integers(0, 99))
def test_flip_mirrors_or_leaves_each_image(shape, dtype, seed):
    images = images_of(shape, dtype)
    for result, image in zip(
        np.asarray(jax.jit(flip)(jax.random.key(seed), images)), images, strict=True
    ):
        assert_one_of(result, image, [image, image[:, ::-1]])


@settings(max_examples=5)
@given(shapes, st.sampled_from([np.uint8, np.float32]), st.integers(0, 3), st.integers(0, 99))
def test_translate_shifts_each_image(shape, dtype, pixels, seed):
    images = images_of(shape, dtype)
    results = np.asarray(shift(jax.random.key(seed), images, pixels))
    span = range(-pixels, pixels + 1)
    for result, image in zip(results, images, strict=True):
        assert_one_of(result, image, (shifted(image, i, j) for i in span for j in span))


@settings(max_examples=5)
@given(shapes, st.sampled_from([np.uint8, np.float32]), st.integers(1, 5), st.integers(0, 99))
def test_cutout_clears_a_square_of_each_image(shape, dtype, size, seed):
    images = images_of(shape, dtype)
    results = np.asarray(hole(jax.random.key(seed), images, size))
    for result, image in zip(results, images, strict=True):
        centres = np.ndindex(*image.shape[:2])
        assert_one_of(result, image, (holed(image, i, j, size) for i, j in centres))


def test_draws_are_uniform_and_differ_by_image():
    n = 4000
    images = np.broadcast_to(images_of((1, 5, 5, 1)), (n, 5, 5, 1))
    flipped = (np.asarray(jax.jit(flip)(KEY, images)) != images).any((1, 2, 3)).mean()
    assert abs(flipped - 0.5) < 5 * np.sqrt(0.25 / n)
    results = np.asarray(shift(KEY, images, 1))
    share = [
        (results == shifted(images[0], i, j)).all((1, 2, 3)).mean()
        for i in (-1, 0, 1)
        for j in (-1, 0, 1)
    ]
    np.testing.assert_allclose(share, 1 / 9, atol=5 * np.sqrt(1 / 9 / n))
    results = np.asarray(hole(KEY, images, 1))
    np.testing.assert_allclose((results == 0).mean(0), 1 / 25, atol=5 * np.sqrt(1 / 25 / n))


STEPS = (flip, functools.partial(translate, pixels=2), functools.partial(cutout, size=3))


@pytest.mark.parametrize("step", [*STEPS, compose(*STEPS)])
def test_compiled_or_not_the_same_key_gives_the_same_images(step):
    images = images_of((8, 6, 6, 3))
    result = np.asarray(step(KEY, images))
    np.testing.assert_array_equal(result, jax.jit(step)(KEY, images))
    assert not np.array_equal(result, step(jax.random.key(1), images))
    # Models in lanes draw on their own.
    lanes = jax.vmap(step, (0, None))(jnp.stack([KEY, jax.random.key(1)]), images)
    np.testing.assert_array_equal(lanes[0], result)
    np.testing.assert_array_equal(lanes[1], step(jax.random.key(1), images))


def test_a_composition_applies_its_steps_in_order():
    images = images_of((8, 6, 6, 3))
    by_hand = images
    for i, step in enumerate(STEPS):
        by_hand = step(core.keys.fold(KEY, i), by_hand)
    np.testing.assert_array_equal(compose(*STEPS)(KEY, images), by_hand)


def test_equal_compositions_are_compiled_once():
    make = lambda size: compose(flip, functools.partial(translate, pixels=size))  # noqa: E731
    assert make(2) == make(2) and hash(make(2)) == hash(make(2)) and make(2) != make(3)
    traced = []

    @functools.partial(jax.jit, static_argnums=0)
    def run(augmentation, images):
        traced.append(0)
        return augmentation(KEY, images)

    for _ in range(2):
        run(make(2), images_of((2, 4, 4, 1)))
    assert len(traced) == 1


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_normalised_images_have_mean_0_and_deviation_1(dtype):
    images = images_of((3000, 4, 4, 3), dtype)  # more than one chunk
    mean, std = augment.channel_statistics(images)
    scaled = images / 255 if dtype == np.uint8 else images.astype(np.float64)
    np.testing.assert_allclose(mean, scaled.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, scaled.std((0, 1, 2)), rtol=1e-12)
    hash((mean, std))
    result = normalise(jnp.asarray(images), mean, std)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, (scaled - mean) / std, atol=2e-6)


def test_bad_arguments():
    images = images_of((2, 4, 4, 1))
    with pytest.raises(ValueError, match="pixels is -1; it must be at least 0"):
        translate(KEY, images, -1)
    with pytest.raises(ValueError, match="size is 0; it must be at least 1"):
        cutout(KEY, images, 0)


def test_batches_are_transformed_with_the_key_of_the_batch():
    arrays = {"x": jnp.asarray(images_of((20, 4, 4, 1))), "y": jnp.arange(20)}
    augmentation = compose(*STEPS)
    transform = lambda batch, key: {**batch, "x": augmentation(key, batch["x"])}  # noqa: E731
    alone, plain = jax.jit(transform), data.batches(arrays, np.arange(20), 5)
    source = data.batches(arrays, np.arange(20), 5, transform=transform)
    rows = source.plan(KEY, jnp.arange(3))
    np.testing.assert_array_equal(rows, plain.plan(KEY, jnp.arange(3)))
    keys = jax.random.split(jax.random.key(1), 3)
    gathered = jax.jit(lambda source: jax.lax.map(lambda at: source.gather(*at), (rows, keys)))
    results, untouched = gathered(source), gathered(plain)
    for t in range(3):
        by_hand = {"x": arrays["x"][rows[t]], "y": arrays["y"][rows[t]]}
        for name in by_hand:
            np.testing.assert_array_equal(untouched[name][t], by_hand[name])
            np.testing.assert_array_equal(results[name][t], alone(by_hand, keys[t])[name])


IDENTITY = jnp.array([[1.0, 0, 0], [0, 1, 0]])


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_the_identity_changes_nothing(dtype):
    images = images_of((3, 5, 7, 2), dtype)
    found = affine(images, jnp.tile(IDENTITY, (3, 1, 1)))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, images)


def test_whole_pixels_move_and_edges_are_reflected():
    images = images_of((1, 4, 5, 1), np.float32)
    found = affine(images, augment.translations(jnp.array([[1.0, -2.0]])))
    rows, columns = [0, 0, 1, 2], [2, 3, 4, 4, 3]  # d c b a | a b c d | d c b a
    np.testing.assert_allclose(found[0], images[0][rows][:, columns], atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("reach", [1, 30])
def test_affine_reads_as_jax_does(dtype, reach):
    """Any matrices, oblong images of two channels, places many sides away."""
    images = images_of((6, 28, 41, 2), dtype)
    matrices = jax.random.normal(KEY, (6, 2, 3)) * jnp.array([1.0, 1.0, reach])
    found = np.asarray(affine(images, matrices))
    y, x = np.mgrid[:28, :41].astype(np.float32)
    read = jax.jit(
        lambda image, at: jax.scipy.ndimage.map_coordinates(image, at, order=1, mode="reflect")
    )
    for image, matrix, own in zip(images, np.asarray(matrices), found, strict=True):
        of_x, of_y = (row[0] * x + row[1] * y + row[2] for row in matrix)
        for channel in range(2):
            theirs = read(image[..., channel], [of_y, of_x])
            # As close as the rounding of places, which may turn a half the other way.
            atol = 1 if dtype == np.uint8 else 1e-4
            np.testing.assert_allclose(
                own[..., channel].astype(float), np.asarray(theirs, float), atol=atol
            )
            if dtype == np.uint8:
                assert (own[..., channel] == theirs).mean() > 0.99


@pytest.mark.parametrize("side", [7, 28, 41, 56, 224])
def test_whole_periods_of_the_reflection_change_nothing(side):
    images = np.broadcast_to(images_of((1, side, side, 1), np.float32), (13, side, side, 1))
    shifts = 2.0 * side * jnp.stack([jnp.arange(-6, 7), jnp.arange(6, -7, -1)], axis=1)
    found = affine(images, augment.translations(shifts))
    np.testing.assert_array_equal(found, images)
    assert affine(images[:0], jnp.zeros((0, 2, 3))).shape == (0, side, side, 1)


def test_matrices_that_do_not_fit_the_images():
    with pytest.raises(ValueError, match=r"matrices is \[2, 2, 3\]; \[3, 2, 3\] fits"):
        affine(images_of((3, 5, 7, 2)), jnp.tile(IDENTITY, (2, 1, 1)))


def test_a_quarter_turn_is_that_of_numpy():
    images = images_of((2, 6, 6, 3), np.float32)
    found = affine(images, augment.rotations(jnp.full(2, jnp.pi / 2), (6, 6)))
    np.testing.assert_allclose(found, np.rot90(images, axes=(1, 2)), atol=1e-5)


def test_zoom_scales_each_side_about_the_centre():
    ramp = jnp.tile(jnp.arange(9.0)[:, None] / 10, (1, 1, 9))[..., None]
    found = affine(ramp, augment.zooms(jnp.array([[0.5, 1.3]]), (9, 9)))
    np.testing.assert_allclose(found[0, :, 4, 0], 0.4 + (np.arange(9) - 4) / 20, atol=1e-6)


def test_one_warp_is_the_product_of_three():
    """On a picture without edges, which interpolation does not blur, both ways agree."""
    y, x = np.mgrid[:32, :32] / 32.0
    images = (
        np.stack([np.sin(2 * x + y), np.cos(x - 2 * y)])[..., None].astype(np.float32) / 2 + 0.5
    )
    how = {"rotation": 0.02, "zoom": 0.1, "translation": 0.05}
    once, thrice = (warp(KEY, images, **how, sequential=flag) for flag in (False, True))
    inside = np.s_[:, 8:-8, 8:-8]
    np.testing.assert_allclose(once[inside], thrice[inside], atol=0.003)
    assert np.abs(once - images)[inside].max() > 0.02


def test_warps_draw_within_their_bounds_and_afresh():
    images = np.zeros((500, 8, 8, 1), np.float32) + 0.5
    bright = warp(KEY, images, 0, 0, 0, brightness=0.3)
    values = np.asarray(bright[:, 0, 0, 0])
    assert values.min() >= 0.2 - 1e-6 and values.max() <= 0.8 + 1e-6
    np.testing.assert_allclose(values.std(), 0.6 / np.sqrt(12), rtol=0.1)
    assert (np.ptp(bright, axis=(1, 2, 3)) == 0).all()
    other = augment.warp(jax.random.key(1), images, 0, 0, 0, brightness=0.3)
    assert not np.array_equal(other, bright)
    full = warp(KEY, images, 0, 0, 0, brightness=2.0)
    assert full.min() == 0 and full.max() == 1


def matrices_of(warp, n=400, size=(40, 60)):
    """What a warp draws, [n, 2, 3]: it reads a picture whose pixels are their own places."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    places = np.broadcast_to(np.stack([x, y], -1), (n, *size, 2))
    found = np.asarray(jax.jit(warp)(places))
    # Around the centre, where nothing is reflected, bilinear reading is exact.
    rows, columns = np.s_[size[0] // 2 - 2 : size[0] // 2 + 3], np.s_[28:33]
    inputs = np.stack([x[rows, columns], y[rows, columns], 1 + 0 * x[rows, columns]], -1)
    read = found[:, rows, columns].reshape(n, 25, 2)
    return np.stack([np.linalg.lstsq(inputs.reshape(25, 3), own, rcond=None)[0].T for own in read])


def assert_uniform(values, most):
    assert np.abs(values).max() <= most * 1.001
    np.testing.assert_allclose(values.std(0), most / np.sqrt(3), rtol=0.1)
    np.testing.assert_allclose(values.mean(0), 0, atol=0.2 * most)


def test_what_each_part_of_a_warp_draws():
    """Image by image: an angle, a factor for each side, and shifts as parts of the sides."""
    size, centre = (40, 60), np.array([29.5, 19.5])
    turns = matrices_of(lambda x: warp(KEY, x, 0.05, 0, 0))
    angles = np.arctan2(turns[:, 1, 0], turns[:, 0, 0])
    assert_uniform(angles, 2 * np.pi * 0.05)
    expected = augment.rotations(jnp.asarray(angles), size)
    np.testing.assert_allclose(turns, expected, atol=1e-3)

    zooms = matrices_of(lambda x: warp(KEY, x, 0, 0.2, 0))
    right, down = zooms[:, 0, 0] - 1, zooms[:, 1, 1] - 1
    assert_uniform(np.stack([right, down], 1), 0.2)
    assert abs(np.corrcoef(right, down)[0, 1]) < 0.2
    fixed = zooms @ np.array([*centre, 1.0])
    np.testing.assert_allclose(fixed, np.tile(centre, (len(fixed), 1)), atol=1e-3)

    shifts = matrices_of(lambda x: warp(KEY, x, 0, 0, 0.1))[:, :, 2]
    assert_uniform(shifts / np.array([60, 40]), 0.1)
    assert abs(np.corrcoef(shifts.T)[0, 1]) < 0.2


def test_a_warp_turns_first_then_scales_then_moves():
    how = {"rotation": 0.05, "zoom": 0.2, "translation": 0.05}

    def only(name, images):
        return warp(KEY, images, **{other: 0.0 for other in how} | {name: how[name]})

    def in_a_row(images):
        for name in how:
            images = only(name, images)
        return images

    images = images_of((9, 12, 15, 2), np.float32)
    thrice = warp(KEY, images, **how, sequential=True)
    np.testing.assert_allclose(thrice, in_a_row(images), atol=1e-6)
    once = matrices_of(lambda x: warp(KEY, x, **how))
    np.testing.assert_allclose(once, matrices_of(in_a_row), atol=1e-3)


def test_amounts_can_be_swept_and_types_stay():
    images = images_of((3, 8, 8, 1), np.float32)
    amounts = jnp.array([0.02, 0.1])
    of = lambda amount: augment.warp(KEY, images, amount, amount, amount, amount)  # noqa: E731
    swept = jax.jit(jax.vmap(of))(amounts)
    for i, amount in enumerate([0.02, 0.1]):
        alone = warp(KEY, images, amount, amount, amount, amount)
        np.testing.assert_allclose(swept[i], alone, atol=1e-5)
    half = augment.warp(KEY, jnp.asarray(images, jnp.float16), brightness=0.1)
    assert half.dtype == jnp.float16
    with pytest.raises(ValueError, match="images has dtype int32; uint8, or floats"):
        augment.as_float(jnp.ones((1, 8, 8, 1), jnp.int32))


@pytest.mark.parametrize("name", ["rotation", "zoom", "translation", "brightness"])
def test_bad_warps(name):
    images = np.zeros((1, 8, 8, 1), np.float32)
    with pytest.raises(ValueError, match=f"{name} is -1"):
        augment.warp(KEY, images, **{name: -1})
    with pytest.raises(ValueError, match="zoom is 1.0; it must be at least 0 and below 1"):
        augment.warp(KEY, images, zoom=1.0)
    with pytest.raises(ValueError, match="images are uint8; floats"):
        augment.warp(KEY, images.astype(np.uint8))
