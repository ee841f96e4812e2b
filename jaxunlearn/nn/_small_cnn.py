"""A family of small convolutional networks, by cost."""

import functools

from jaxunlearn.core.model import Model
from jaxunlearn.nn._cnn import cnn

MAX_STAGES = 3


@functools.cache  # the same network is the same `Model`, so that jit finds its programs again
def small_cnn(
    input_shape: tuple[int, int, int], budget: int, n_classes: int = 10, batch_norm: bool = True
) -> Model:
    """The widest small convolutional network within a budget of multiply-adds per image.

    The network is `cnn` with channels (w, 2w, 4w): 3x3 convolution, BatchNorm, ReLU, 2x2 max-pool
    per stage, then flatten and linear; two stages for images below 8 pixels, one below 4. The width
    w is the largest whose convolutions and linear layer stay within `budget`.

    Doubling the width while halving the image gives each stage but the first the same cost. On
    32 x 32 x 3 one million buys w = 8. Flattening the last 4 x 4 positions, in place of averaging
    them, costs less than one percent of that and keeps where things are.

    Args:
        input_shape: (height, width, channels) of one image, at least 2 x 2.
        budget: multiply-adds per image, as `multiply_adds` counts them.
        n_classes: number of outputs.
        batch_norm: BatchNorm after each convolution, in place of its bias.

    Returns:
        A model from images [B, H, W, C] to logits [B, n_classes].

    Raises:
        ValueError: the image is below 2 x 2, or the budget below the smallest network.
    """
    if min(input_shape[:2]) < 2:
        raise ValueError(f"input_shape is {input_shape}; height and width must be at least 2")
    least = _cost(input_shape, 1, n_classes)
    if budget < least:
        raise ValueError(
            f"budget is {budget} multiply-adds; the smallest network for {input_shape} and "
            f"{n_classes} classes takes {least}"
        )
    width = 1
    while _cost(input_shape, width + 1, n_classes) <= budget:
        width += 1
    return cnn(input_shape, _channels(input_shape, width), n_classes, batch_norm)


def _channels(input_shape: tuple[int, int, int], width: int) -> tuple[int, ...]:
    n_stages = min(MAX_STAGES, min(input_shape[:2]).bit_length() - 1)
    return tuple(width * 2**i for i in range(n_stages))


def _cost(input_shape: tuple[int, int, int], width: int, n_classes: int) -> int:
    """Multiply-adds of the network of that width."""
    height, length, n_in = input_shape
    total = 0
    for n_out in _channels(input_shape, width):
        total += height * length * 9 * n_in * n_out
        height, length, n_in = height // 2, length // 2, n_out
    return total + height * length * n_in * n_classes
