"""Views of a batch: the setting `augment` of the methods that have it."""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax

from jaxunlearn.core.keys import Key

Views: TypeAlias = Callable[[Key, jax.Array], Any]  # (key, images [B, H, W, C]) -> images


def augmentation(setting: Literal["default"] | Views, default: Views) -> Views:
    """The function that the setting stands for.

    Raises:
        ValueError: neither "default" nor a function.
    """
    if callable(setting):
        return setting
    if setting == "default":
        return default
    raise ValueError(
        f"augment is {setting!r}; 'default' or a function (key, images) -> images is needed"
    )
