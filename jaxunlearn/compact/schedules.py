"""Unfreezing schedules of the fused network, stage by stage (arXiv 2501.15547, its code)."""

from typing import Literal, TypeAlias

# From the answer back to the image.
LAYERS = {
    "out": "out/.*",
    "hidden": "hidden/.*",
    "head": "branch_[12]/head/.*",
    "conv_2": "branch_[12]/conv_2/.*",
    "conv_1": "branch_[12]/conv_1/.*",
}

Named: TypeAlias = Literal["paper", "official_notebook", "last_k"]
Schedule: TypeAlias = Named | tuple[str, ...] | tuple[tuple[str, ...], ...]


def layers_of(schedule: Schedule, k: int = 2) -> tuple[tuple[str, ...], ...]:
    """Which layers each stage trains.

    Args:
        schedule: one of

            - "paper": the last layer, the last two, and so on to all five;
            - "official_notebook": all but the last layer, which stays as it was drawn, then all.
              The comment of the author's code says the opposite; this is what it does, and what
              gave its published accuracy;
            - "last_k": the last k layers, then all;
            - the layers that each stage trains, `(("out", "hidden"), ("conv_2",))` or, in other
              words, `("out,hidden", "conv_2")`.
        k: number of layers of "last_k", 1 to 5.

    Raises:
        ValueError: an unknown schedule or layer, an empty list, or a k that is out of range.

    >>> layers_of("official_notebook")[0]
    ('hidden', 'head', 'conv_2', 'conv_1')
    """
    every = tuple(LAYERS)
    if schedule == "paper":
        return tuple(every[: i + 1] for i in range(len(every)))
    if schedule == "official_notebook":
        return every[1:], every
    if schedule == "last_k":
        if not 1 <= k <= len(every):
            raise ValueError(f"k is {k}; 1 to {len(every)} are allowed")
        return every[:k], every
    if isinstance(schedule, str):
        raise ValueError(
            f"schedule is {schedule!r}; paper, official_notebook, last_k, or the layers of each "
            "stage are allowed"
        )
    layers = tuple(
        tuple(names.split(",") if isinstance(names, str) else names) for names in schedule
    )
    if not layers or not all(layers):
        raise ValueError(f"schedule is {schedule}; at least one stage, of at least one layer")
    unknown = [name for names in layers for name in names if name not in LAYERS]
    if unknown:
        raise ValueError(f"schedule has the layer {unknown[0]!r}; there are {', '.join(LAYERS)}")
    return layers
