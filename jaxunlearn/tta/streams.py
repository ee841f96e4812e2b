"""Streams: in which order images of several domains arrive, and in which batches.

A domain is a corruption and a severity. Images lie domain after domain in one array, the same n of
each; a stream says in which order its rows arrive, and a feed which of them make up each batch. The
protocols are those of the published benchmark (Doebler et al. 2023, section 4): the same order of
images in every domain, batches that end where a domain ends.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from jaxunlearn.core import checks

CLEAN = "none"  # the domain of images as they are
# Whether domains are pooled, whether a new corruption resets the method, whether labels follow on
# each other.
_SETTINGS = {
    "continual": (False, False, False),
    "gradual": (False, False, False),
    "reset": (False, True, False),
    "mixed": (True, False, False),
    "correlated": (False, False, True),
    "gradual_correlated": (False, False, True),
    "reset_correlated": (False, True, True),
    "mixed_correlated": (True, False, True),
}
SETTINGS = tuple(_SETTINGS)


class Domain(NamedTuple):
    """A corruption and its severity; the clean images are ("none", 0)."""

    name: str
    severity: float


class Stream(NamedTuple):
    """The order in which images arrive.

    Attributes:
        rows: which image arrives, int [N].
        visit: during which visit of a domain, int [N].
        starts: positions at which a batch must begin, the first is 0.
        resets: those of them at which the method starts anew.
    """

    rows: np.ndarray
    visit: np.ndarray
    starts: tuple[int, ...]
    resets: tuple[int, ...] = ()


def domains(
    order: Literal["continual", "gradual"],
    names: Sequence[str] | None = None,
    severity: float = 5,
) -> list[Domain]:
    """Corruptions as they follow on each other.

    Args:
        order: "continual", each at one severity; or "gradual", each at 1, 2, 3, 4, 5, 4, 3, 2, 1.
        names: corruptions, by default the fifteen of ImageNet-C in their published order.
        severity: of "continual".
    """
    from jaxunlearn.data import corruptions

    checks.one_of("order", order, ("continual", "gradual"))
    names = corruptions.NAMES[:15] if names is None else names
    if order == "continual":
        return [Domain(name, severity) for name in names]
    return [Domain(name, level) for name in names for level in (1, 2, 3, 4, 5, 4, 3, 2, 1)]


def recurring(
    visits: Sequence[Domain], rounds: int = 1, clean_between: bool = False
) -> list[Domain]:
    """The same domains in several rounds; with clean images before the first and after each."""
    checks.whole("rounds", rounds)
    clean = [Domain(CLEAN, 0)]
    round_ = [d for domain in visits for d in ([domain, *clean] if clean_between else [domain])]
    return (clean if clean_between else []) + round_ * rounds


def arrange(
    setting: str,
    visits: Sequence[Domain],
    labels: np.ndarray,
    seed: int,
    *,
    delta: float | None = None,
) -> tuple[list[Domain], Stream]:
    """The stream of a setting.

    Args:
        setting: one of `SETTINGS`. "continual" and "gradual" only shuffle the images; "reset"
            starts the method anew at each corruption; "mixed" shuffles all domains together;
            "correlated" sorts by label within each domain, or within all with "mixed".
        visits: domains as they follow on each other; one that comes again is read again.
        labels: of the n images of every domain, int [n]; they only decide the order.
        seed: of the shuffles.
        delta: concentration of a Dirichlet distribution that cuts each class into as many chunks as
            there are classes, in place of sorting; small is strongly correlated.

    Returns:
        The distinct domains, in whose order images lie, and the stream.
    """
    pools, resets, correlated = _SETTINGS[checks.one_of("setting", setting, SETTINGS)]
    if delta is not None and not correlated:
        raise ValueError(f"delta is {delta} in the setting {setting!r}, which correlates nothing")
    rng = np.random.default_rng(seed)
    distinct = list(dict.fromkeys(visits))
    n, order = len(labels), rng.permutation(len(labels))
    rows = np.stack([distinct.index(domain) * n + order for domain in visits])
    visit = np.repeat(np.arange(len(visits)), n).reshape(rows.shape)
    if pools:
        mix = rng.permutation(rows.size)
        rows, visit = (table.reshape(1, -1)[:, mix] for table in (rows, visit))
    if correlated:
        orders = [_by_label(labels[segment % n], rng, delta) for segment in rows]
        rows, visit = (
            np.stack([segment[o] for segment, o in zip(table, orders, strict=True)])
            for table in (rows, visit)
        )
    starts = tuple(range(0, rows.size, rows.shape[1]))
    anew = [i for i in range(1, len(visits)) if visits[i].name != visits[i - 1].name]
    at = tuple(starts[i] for i in anew) if resets else ()
    return distinct, Stream(rows.reshape(-1), visit.reshape(-1), starts, at)


def _by_label(labels: np.ndarray, rng: np.random.Generator, delta: float | None) -> np.ndarray:
    if delta is None:
        return np.argsort(labels, kind="stable")
    return dirichlet_order(labels, rng, delta)


def dirichlet_order(
    labels: np.ndarray, rng: np.random.Generator, delta: float, tries: int = 10_000
) -> np.ndarray:
    """An order in which labels come in bursts: a permutation of the rows, int [n].

    Each class is cut into as many chunks as there are classes by shares from Dirichlet(delta),
    where a chunk that has its part of all images already gets none; inside a chunk classes come one
    after the other in random order. Drawn again until every chunk has 10 images, as far as there
    are so many (Doebler et al. 2023; Gong et al. 2022, NOTE).

    Raises:
        ValueError: a delta that is not positive, or so small that no draw will do.
    """
    checks.positive("delta", delta)
    classes = np.unique(labels)
    n_chunks, n = len(classes), len(labels)
    least = min(10, n // (2 * n_chunks))
    for _ in range(tries):
        chunks: list[list[np.ndarray]] = [[] for _ in range(n_chunks)]
        sizes = np.zeros(n_chunks, int)
        for label in classes:
            rows = rng.permutation(np.flatnonzero(labels == label))
            shares = rng.dirichlet(np.full(n_chunks, delta)) * (sizes < n / n_chunks)
            if not shares.sum() > 0:  # all shares of the chunks with room are rounded to 0
                shares = (sizes < n / n_chunks).astype(float)
            cuts = (np.cumsum(shares / shares.sum()) * len(rows)).astype(int)[:-1]
            for chunk, part in zip(chunks, np.split(rows, cuts), strict=True):
                chunk.append(part)
            sizes = np.array([sum(map(len, chunk)) for chunk in chunks])
        if sizes.min() >= least:
            mixed = (chunk[i] for chunk in chunks for i in rng.permutation(len(chunk)))
            return np.concatenate(list(mixed))
    raise ValueError(f"delta is {delta}; no draw of {tries} gave every chunk {least} images")


def in_order(n: int) -> Stream:
    """The stream of one array of n images."""
    return Stream(np.arange(n), np.zeros(n, int), (0,))


def batches(
    stream: Stream, batch_size: int, *, reset_every: int | None = None
) -> dict[str, np.ndarray]:
    """The tables of a feed (see `feed.Feed`), and `place`, int [T, B]: which position each row is.

    Args:
        stream: the stream.
        batch_size: images of a batch; the last one before each start may have fewer.
        reset_every: batches after which the method starts anew (RDumb's 1,000, with ETA).
    """
    checks.whole("batch_size", batch_size)
    ends = (*stream.starts[1:], len(stream.rows))
    cuts = [
        (i, min(i + batch_size, end))
        for start, end in zip(stream.starts, ends, strict=True)
        for i in range(start, end, batch_size)
    ]
    place = np.array([np.arange(i, i + batch_size) for i, _ in cuts])
    is_there = place < np.array([end for _, end in cuts])[:, None]
    place = np.where(is_there, place, 0)
    tables = {"rows": stream.rows[place].astype(np.int32), "place": place}
    if not is_there.all():
        tables["valid"] = is_there
    reset = np.isin([i for i, _ in cuts], stream.resets)
    return tables | _resets(reset, reset_every)


def windows(
    stream: Stream, length: int, *, reset_every: int | None = None
) -> dict[str, np.ndarray]:
    """The tables of a feed that predicts one image after the other.

    The last `length` images lie in a ring; statistics are those of all of them, the newest one is
    predicted, and the method adapts when all have been replaced.

    Args:
        stream: the stream.
        length: images of the window.
        reset_every: updates after which the method starts anew.
    """
    checks.whole("length", length, 2)
    n = len(stream.rows)
    newest = np.arange(n) % length
    slots = np.arange(length)
    behind = (newest[:, None] - slots[None]) % length  # how many images ago a slot was filled
    place = np.arange(n)[:, None] - behind
    is_there = place >= 0
    update = newest == length - 1
    reset = np.isin(np.arange(n), stream.resets)
    tables = {
        "rows": stream.rows[np.maximum(place, 0)].astype(np.int32),
        "place": np.arange(n),
        "valid": is_there,
        "newest": newest.astype(np.int32),
        "update": update,
    }
    every = None if reset_every is None else reset_every * length
    return tables | _resets(reset, every)


def _resets(reset: np.ndarray, every: int | None) -> dict[str, np.ndarray]:
    if every is not None:
        at = np.arange(len(reset))
        reset = reset | ((at % checks.whole("reset_every", every) == 0) & (at > 0))
    return {"reset": reset} if reset.any() else {}


class Drift(NamedTuple):
    """What corrupts a batch of a stream that changes smoothly: one corruption on top of another.

    A severity of 0 leaves images as they are.
    """

    first: Domain
    second: Domain


def drifting(names: Sequence[str], length: int, seed: int, severity: float = 5) -> Iterator[Drift]:
    """An endless stream that glides from corruption to corruption (after CCC, Press et al. 2023).

    Each corruption fades out over `length` batches while the next, drawn at random, fades in.

    Args:
        names: corruptions to draw from, at least two.
        length: batches of a change.
        seed: of the draws.
        severity: highest severity.
    """
    checks.whole("length", length, 2)
    if len(set(names)) < 2:
        raise ValueError(f"names is {list(names)}; at least two corruptions are needed")
    rng = np.random.default_rng(seed)
    now = names[int(rng.integers(len(names)))]
    while True:
        others = [name for name in names if name != now]
        after = others[int(rng.integers(len(others)))]
        for step in range(length):
            share = step / length
            yield Drift(_faded(now, severity * (1 - share)), _faded(after, severity * share))
        now = after


def _faded(name: str, severity: float) -> Domain:
    return Domain(name, severity) if severity >= 1 else Domain(CLEAN, 0)


def take(drift: Iterator[Drift], n: int) -> list[Drift]:
    """The next n of an endless stream."""
    return list(itertools.islice(drift, n))
