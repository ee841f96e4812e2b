"""The images of a study's domains: corrupted on the fly, or read from folders and files."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxunlearn.core import checks
from jaxunlearn.core.keys import Key, fold
from jaxunlearn.data import Dataset, corruptions
from jaxunlearn.tta import streams
from jaxunlearn.tta.settings import Settings
from jaxunlearn.tta.source_network import as_pictures
from jaxunlearn.tta.streams import CLEAN, Domain, Drift, Stream


class Material(NamedTuple):
    """What is streamed.

    Attributes:
        visits: domains as they follow on each other.
        domains: the distinct ones, in whose order images lie.
        streams: the stream of each run.
        labels: of every image, int [images]; None without labels.
        drift: of a stream that changes smoothly, what corrupts each batch; else empty.
    """

    visits: list[Domain]
    domains: list[Domain]
    streams: list[Stream]
    labels: np.ndarray | None
    drift: list[Drift]


def planned(settings: Settings, dataset: Dataset) -> Material:
    """Which images arrive when; nothing is corrupted yet.

    Raises:
        ValueError: corruptions, a severity or a stream that there is not.
    """
    names = settings.corruptions or corruptions.NAMES[:15]
    for name in names:
        checks.one_of("corruptions", name, corruptions.NAMES)
    if not 1 <= checks.at_least("severity", settings.severity, 0) <= 5:
        raise ValueError(f"severity is {settings.severity}; 1 to 5 are allowed")
    if settings.setting == "drift":
        return _drifting(settings, names, dataset)
    order = "gradual" if settings.setting.startswith("gradual") else "continual"
    once = streams.domains(order, names, settings.severity)
    visits = streams.recurring(once, settings.rounds, settings.clean_between)
    y = dataset.y_val
    arranged = [
        streams.arrange(settings.setting, visits, y, settings.seed + i, delta=settings.delta)
        for i in range(settings.n_seeds)
    ]
    domains = arranged[0][0]
    return Material(visits, domains, [s for _, s in arranged], np.tile(y, len(domains)), [])


def _drifting(settings: Settings, names: Sequence[str], dataset: Dataset) -> Material:
    """Each batch draws its images anew; a visit is the change from one corruption to the next."""
    length, n_changes, size = (
        settings.drift_length,
        len(names) * settings.rounds,
        settings.batch_size,
    )
    endless = streams.drifting(names, length, settings.seed, settings.severity)
    drift = streams.take(endless, n_changes * length)
    rng = np.random.default_rng(settings.seed)
    rows = rng.integers(len(dataset.y_val), size=(len(drift), size)).reshape(-1)
    visit = np.repeat(np.arange(n_changes), length * size)
    visits = [drift[i * length].first for i in range(n_changes)]
    stream = Stream(np.arange(len(rows)), visit, (0,))
    return Material(visits, visits, [stream] * settings.n_seeds, dataset.y_val[rows], drift)


def made(
    plan: Material, dataset: Dataset, settings: Settings, done: Callable[[int], None]
) -> np.ndarray:
    """The images, domain after domain, uint8 [images, H, W, 3].

    Args:
        plan: from `planned`.
        dataset: whose validation images are corrupted.
        settings: settings of the study.
        done: told the number of domains that are made.
    """
    key, x = fold(jax.random.key(settings.seed), "images"), as_pictures(dataset.x_val)
    done(0)
    if plan.drift:
        rng = np.random.default_rng(settings.seed)
        rows = rng.integers(len(x), size=(len(plan.drift), settings.batch_size))
        parts = []
        for t, (drift, of_batch) in enumerate(zip(plan.drift, rows, strict=True)):
            parts.append(drifted(x[of_batch], drift, fold(key, t), settings.family))
            done((t + 1) // settings.drift_length)
        return np.concatenate(parts)
    parts = []
    for i, domain in enumerate(plan.domains):
        parts.append(corrupted(x, domain, key, settings.family))
        done(i + 1)
    return np.concatenate(parts)


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
