"""The augmentation of test images: what its draws and its factors promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import tta
from jaxunlearn.tta import contrast_views, views
from jaxunlearn.tta._augment import CLEAR, DEFAULT, SOFT

IMAGES = np.random.default_rng(0).uniform(size=(4, 8, 8, 3)).astype("float32")
KEY = jax.random.key(3)
DRAW = jax.jit(lambda keys: jax.vmap(lambda key: DEFAULT.draw(key, IMAGES.shape))(keys))


def test_neutral_factors_leave_the_images():
    out = jax.jit(lambda x: tta.augment(x, {}))(IMAGES)
    np.testing.assert_allclose(out, IMAGES, atol=1e-6)


def test_a_flip_mirrors_and_a_shift_moves_down_and_right():
    flipped = tta.augment(IMAGES, {"flip": True})
    np.testing.assert_allclose(flipped, IMAGES[:, :, ::-1], atol=1e-6)
    moved = tta.augment(IMAGES, {"translate": (2, 1)})
    np.testing.assert_allclose(moved[:, 1:, 2:], IMAGES[:, :-1, :-2], atol=1e-6)


def test_grey_images_have_one_channel_or_three():
    factors = {"contrast": 0.5, "saturation": 0.3, "hue": 0.2, "gamma": 0.8}
    grey = IMAGES[..., :1]
    of_one = tta.augment(grey, factors)
    of_three = tta.augment(np.repeat(grey, 3, axis=-1), factors)
    np.testing.assert_allclose(np.repeat(of_one, 3, axis=-1), of_three, atol=1e-3)


def test_draws_lie_in_their_ranges():
    drawn = DRAW(jax.random.split(KEY, 300))
    for name in ("brightness", "contrast", "saturation", "hue", "gamma", "angle", "scale", "sigma"):
        least, most = getattr(DEFAULT, name)
        values = getattr(drawn, name)
        assert least <= values.min() < least + 0.1 * (most - least)
        assert most >= values.max() > most - 0.1 * (most - least)
    assert {*np.unique(drawn.translate)} == {-1, 0, 1}  # a sixteenth of 16 padded pixels
    assert (np.sort(drawn.order, axis=1) == np.arange(5)).all()
    assert 0.4 < drawn.flip.mean() < 0.6
    np.testing.assert_allclose(drawn.noise.std(), 0.005, rtol=0.01)


@pytest.mark.parametrize("variant", [DEFAULT, SOFT, CLEAR], ids=["default", "soft", "clear"])
def test_a_row_does_not_depend_on_how_many_follow(variant):
    """So padding a batch changes nothing; a variant is hashable, as a setting of a method is."""
    augment = jax.jit(variant)
    out = augment(KEY, IMAGES)
    assert out.shape == IMAGES.shape and 0 <= out.min() <= out.max() <= 1
    np.testing.assert_allclose(augment(KEY, IMAGES[:2]), out[:2], atol=1e-6)
    assert hash(variant) == hash(tta.Augmentation(**vars(variant)))


def test_weak_and_strong_views():
    weak, query, positive = jax.jit(contrast_views.weak_and_strong)(KEY, IMAGES)
    mirrored = np.isclose(weak, IMAGES[:, :, ::-1]).all((1, 2, 3))
    assert (mirrored | np.isclose(weak, IMAGES).all((1, 2, 3))).all()
    for view in (query, positive):
        assert view.shape == IMAGES.shape and 0 <= view.min() <= view.max() <= 1 + 1e-6
    assert not np.allclose(query, positive)


@pytest.mark.parametrize(
    ("factors", "named"),
    [
        ({"brightnes": 1.0}, "brightnes"),
        ({"order": (0, 1, 2, 3, 3)}, "order"),
        ({"noise": np.zeros((2, 8, 8, 3))}, "noise"),
    ],
)
def test_factors_that_do_not_fit_are_named(factors, named):
    with pytest.raises(ValueError, match=named):
        tta.augment(jnp.asarray(IMAGES), factors)


def test_what_is_no_augmentation_is_named():
    with pytest.raises(ValueError, match="augment is 'strong'"):
        views.augmentation("strong", DEFAULT)
    with pytest.raises(ValueError, match="padding"):
        tta.augment(jnp.asarray(IMAGES), {}, padding="zeros")
