"""Sufficient statistics of a regression of outputs on masks, gathered block by block."""

import dataclasses

import numpy as np

from jaxunlearn.attribution import masks as subsets

_BLOCK = 1024  # members whose masks stand as float64 at once


@dataclasses.dataclass
class Statistics:
    """Moments of masks and outputs; members can be forgotten once they are added.

    Sums are float64 on the host. Masks count as -1/2 and 1/2, and outputs are taken relative to
    the first block's mean, so that no digits are lost where a mean is large; the moments of masks
    are exact.

    Attributes:
        count: members added, M.
        mask_sum: [n].
        mask_product: [n, n].
        output_sum: [T].
        output_square: [T].
        cross: [n, T], masks times outputs.
        offset: [T], what was subtracted from the outputs.
    """

    count: int
    mask_sum: np.ndarray
    mask_product: np.ndarray
    output_sum: np.ndarray
    output_square: np.ndarray
    cross: np.ndarray
    offset: np.ndarray

    @classmethod
    def of(cls, masks: np.ndarray, outputs: np.ndarray) -> "Statistics":
        """The statistics of a first block.

        Args:
            masks: 0/1 [M, n].
            outputs: [M, T].
        """
        masks, outputs = check(masks, outputs)
        (_, n), (_, n_targets) = masks.shape, outputs.shape
        empty = cls(
            0,
            np.zeros(n),
            np.zeros((n, n)),
            np.zeros(n_targets),
            np.zeros(n_targets),
            np.zeros((n, n_targets)),
            outputs.mean(0, dtype=np.float64),
        )
        return empty.add(masks, outputs)

    def add(self, masks: np.ndarray, outputs: np.ndarray) -> "Statistics":
        """Adds a block of members in place and returns itself.

        Raises:
            ValueError: shapes that do not fit, or outputs that are not finite (nothing is added).
        """
        masks, outputs = check(masks, outputs, first=self.count)
        if masks.shape[1] != len(self.mask_sum) or outputs.shape[1] != len(self.offset):
            raise ValueError(
                f"masks are {list(masks.shape)} and outputs {list(outputs.shape)}; the statistics "
                f"are of {len(self.mask_sum)} points and {len(self.offset)} targets"
            )
        for at in range(0, len(masks), _BLOCK):
            x = masks[at : at + _BLOCK] - 0.5
            y = outputs[at : at + _BLOCK] - self.offset
            self.count += len(x)
            self.mask_sum += x.sum(0)
            self.mask_product += x.T @ x
            self.output_sum += y.sum(0)
            self.output_square += np.square(y).sum(0)
            self.cross += x.T @ y
        return self

    @property
    def mean(self) -> np.ndarray:
        """How often each point is in a subset, [n]."""
        return self.mask_sum / self.count + 0.5

    @property
    def std(self) -> np.ndarray:
        """Standard deviation of each point's mask, [n]; 0 where it is in every or no subset."""
        return np.sqrt(self.mean * (1 - self.mean))

    @property
    def output_mean(self) -> np.ndarray:
        """Mean of each target's outputs, [T]."""
        return self.output_sum / self.count + self.offset

    @property
    def output_variance(self) -> np.ndarray:
        """Variance of each target's outputs, [T]."""
        return self.output_square / self.count - (self.output_sum / self.count) ** 2

    def gram(self) -> np.ndarray:
        """X'X / M of the standardised masks, [n, n]; rows of constant points are 0."""
        mean = self.mask_sum / self.count
        scale = inverse(self.std)
        return (self.mask_product / self.count - np.outer(mean, mean)) * np.outer(scale, scale)

    def correlation(self) -> np.ndarray:
        """X'y / M of the standardised masks and the outputs, [n, T]."""
        means = np.outer(self.mask_sum / self.count, self.output_sum / self.count)
        return (self.cross / self.count - means) * inverse(self.std)[:, None]

    def in_mask_coordinates(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weights [n, T] of standardised masks as weights and intercept [T] of 0/1 masks."""
        weights = weights * inverse(self.std)[:, None]
        return weights, self.output_mean - self.mean @ weights


def standardised(masks: np.ndarray, statistics: Statistics) -> np.ndarray:
    """(m - mean) / std as float64 [M, n]; columns of constant points are 0."""
    return (masks - statistics.mean) * inverse(statistics.std)


def check(masks, outputs, first: int = 0, first_target: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Masks as bool [M, n] and outputs as floats [M, T].

    Raises:
        ValueError: shapes that do not fit, or outputs that are not finite; the member is named,
            counted from `first`, and the target.
    """
    masks, outputs = subsets.check(masks), np.asarray(outputs)
    if outputs.ndim != 2 or len(outputs) != len(masks) or outputs.shape[1] == 0:
        raise ValueError(
            f"masks are {list(masks.shape)} and outputs {list(outputs.shape)}; [M, n] and [M, T] "
            "with the same M are needed"
        )
    if not np.issubdtype(outputs.dtype, np.floating):
        outputs = outputs.astype(np.float64)
    good = np.isfinite(outputs)
    if not good.all():
        member, target = np.argwhere(~good)[0]
        raise ValueError(
            f"outputs: that of member {first + int(member)} on target "
            f"{first_target + int(target)} is {outputs[member, target]}"
        )
    return masks, outputs


def inverse(std: np.ndarray) -> np.ndarray:
    """1 / std, and 0 for a point that is in every subset or in none."""
    return np.where(std > 0, 1 / np.where(std > 0, std, 1), 0)
