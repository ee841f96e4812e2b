"""The images of a study's domains: corrupted on the fly, or read from folders and files."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxunlearn.core import checks
from jaxunlearn.core.keys import Key, fold
from jaxunlearn.data import Dataset, corruptions
from jaxunlearn.tta import corrupted_files, streams
from jaxunlearn.tta.settings import Settings
from jaxunlearn.tta.source_network import as_pictures
from jaxunlearn.tta.streams import CLEAN, Domain, Drift, Stream


class Material(NamedTuple):
    """What is streamed.

    Attributes:
        visits: domains as they follow on each other.
        domains: the distinct ones, in whose order images lie; with "drift" the visits.
        streams: the stream of each run.
        labels: of every image, int [images]; None without labels.
        image: shape of an image.
        make: `make(done)` gives all images, uint8 [images, H, W, 3], and tells how many domains are
            done.
    """

    visits: list[Domain]
    domains: list[Domain]
    streams: list[Stream]
    labels: np.ndarray | None
    image: tuple[int, ...]
    make: Callable[[Callable[[int], None]], np.ndarray]


def planned(settings: Settings, dataset: Dataset) -> Material:
    """Which images arrive when; nothing is corrupted or read yet.

    Raises:
        ValueError: corruptions, a severity or a stream that there is not.
    """
    if not 1 <= checks.at_least("severity", settings.severity, 0) <= 5:
        raise ValueError(f"severity is {settings.severity}; 1 to 5 are allowed")
    if settings.corrupted is not None:
        return _from_files(settings)
    names = settings.corruptions or corruptions.NAMES[:15]
    for name in names:
        checks.one_of("corruptions", name, corruptions.NAMES)
    key, x = fold(jax.random.key(settings.seed), "images"), as_pictures(dataset.x_val)
    if settings.setting == "drift":
        return _drifting(settings, names, x, dataset.y_val, key)
    order = "gradual" if settings.setting.startswith("gradual") else "continual"
    once = streams.domains(order, names, settings.severity)
    read = lambda domain: corrupted(x, domain, key, settings.family)  # noqa: E731
    return _arranged(settings, once, dataset.y_val, x.shape[1:], read)


def _from_files(settings: Settings) -> Material:
    """A stream of images that are corrupted already."""
    if settings.setting == "drift" or settings.clean_between:
        what = "drift" if settings.setting == "drift" else "clean_between"
        raise ValueError(f"corrupted is given with {what}, which needs images as they are")
    assert settings.corrupted is not None
    files = corrupted_files.opened(settings.corrupted, settings.n_val, settings.size)
    for name in settings.corruptions:
        checks.one_of("corruptions", name, files.names)
    names = settings.corruptions or files.names
    if files.labels is None and "correlated" in settings.setting:
        raise ValueError(f"setting is {settings.setting!r}, but {settings.corrupted} has no labels")
    order = "gradual" if settings.setting.startswith("gradual") else "continual"
    once = streams.domains(order, names, settings.severity)
    read = lambda domain: as_pictures(files.read(domain))  # noqa: E731
    first = read(once[0])
    labels = np.zeros(len(first), int) if files.labels is None else files.labels
    plan = _arranged(settings, once, labels, first.shape[1:], read)
    return plan if files.labels is not None else plan._replace(labels=None)


def _arranged(
    settings: Settings,
    once: list[Domain],
    labels: np.ndarray,
    image: tuple[int, ...],
    read: Callable[[Domain], np.ndarray],
) -> Material:
    """Streams over domains, of which each has the same labels; `read` gives a domain's images."""
    visits = streams.recurring(once, settings.rounds, settings.clean_between)
    arranged = [
        streams.arrange(settings.setting, visits, labels, settings.seed + i, delta=settings.delta)
        for i in range(settings.n_seeds)
    ]
    domains = arranged[0][0]

    def make(done: Callable[[int], None]) -> np.ndarray:
        done(0)
        parts = []
        for i, domain in enumerate(domains):
            parts.append(read(domain))
            done(i + 1)
        return np.concatenate(parts)

    of_images, of_runs = np.tile(labels, len(domains)), [stream for _, stream in arranged]
    return Material(visits, domains, of_runs, of_images, image, make)


def _drifting(
    settings: Settings, names: Sequence[str], x: np.ndarray, y: np.ndarray, key: Key
) -> Material:
    """Each batch draws its images anew; a visit is the change from one corruption to the next."""
    length, size = settings.drift_length, settings.batch_size
    n_changes = len(names) * settings.rounds
    endless = streams.drifting(names, length, settings.seed, settings.severity)
    drift = streams.take(endless, n_changes * length)
    rows = np.random.default_rng(settings.seed).integers(len(y), size=(len(drift), size))
    visits = [drift[i * length].first for i in range(n_changes)]
    stream = Stream(np.arange(rows.size), np.repeat(np.arange(n_changes), length * size), (0,))

    def make(done: Callable[[int], None]) -> np.ndarray:
        done(0)
        parts = []
        for t, (now, of_batch) in enumerate(zip(drift, rows, strict=True)):
            parts.append(drifted(x[of_batch], now, fold(key, t), settings.family))
            done((t + 1) // length)
        return np.concatenate(parts)

    labels, of_runs = y[rows.reshape(-1)], [stream] * settings.n_seeds
    return Material(visits, visits, of_runs, labels, x.shape[1:], make)


def corrupted(x: np.ndarray, domain: Domain, key: Key, family: str) -> np.ndarray:
    """Images of one domain: uint8 [n, H, W, 3] in and out; each image has a draw of its own."""
    if domain.name == CLEAN:
        return x
    own = fold(key, domain.name, round(100 * domain.severity))
    return np.asarray(corruptions.apply(domain.name, x, domain.severity, own, family=family))


def drifted(x: np.ndarray, drift: Drift, key: Key, family: str) -> np.ndarray:
    """One corruption on top of another."""
    for domain in drift:
        x = corrupted(x, domain, key, family)
    return x
