"""From settings to a store: the plan, and the base."""

import collections
import dataclasses
import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from jaxunlearn import data
from jaxunlearn.core import tree
from jaxunlearn.core.folders import check_link, check_own
from jaxunlearn.core.keys import fold
from jaxunlearn.core.tree import Tree
from jaxunlearn.exact import material, orders
from jaxunlearn.exact.files import digest_of
from jaxunlearn.exact.material import Arrays, Material, examples_of
from jaxunlearn.exact.plan import Plan
from jaxunlearn.exact.plan import make as make_plan
from jaxunlearn.exact.pretraining import Pretraining, pretrain
from jaxunlearn.exact.service import Service, check_new, create
from jaxunlearn.exact.settings import Moved, Settings, check_same, record_of, settings_of
from jaxunlearn.exact.sliceable import Config
from jaxunlearn.nn.images import vit

Progress = Callable[[str, int, int], None]  # phase, done, total


def plan_of(settings: Settings, config: Config, n: int, largest_group: int = 1) -> Plan:
    """The plan for n examples.

    Raises:
        ValueError: sizes that do not fit.
    """
    slices = settings.shards * settings.slices
    if min(settings.shards, settings.slices) < 1:
        raise ValueError(f"shards and slices are {settings.shards} and {settings.slices}; >= 1")
    if slices > n:
        raise ValueError(
            f"shards and slices are {settings.shards} and {settings.slices}: {slices} slices of "
            f"{n} examples; there must be an example for each"
        )
    per_slice = settings.layers_per_slice
    if per_slice is None:
        per_slice = config.n_layers // settings.slices
    if settings.layers_per_slice is None and per_slice < 1:
        raise ValueError(
            f"slices is {settings.slices}; the network has {config.n_layers} layers, at least one "
            "is needed for each slice"
        )
    mean = n / slices
    # A hash decides which slice an example is in; only their number and groups show in the plan.
    room = int(np.ceil(mean + 4 * np.sqrt(mean * largest_group)))
    return make_plan(
        settings.shards,
        orders.cyclic(settings.slices, settings.budget),
        max(room, settings.recipe.batch_size) if settings.capacity is None else settings.capacity,
        recipe=settings.recipe,
        layers_per_slice=per_slice,
        direction=settings.direction,
        lane_width=settings.lane_width,
        cached=not settings.recipe.augment,
        seed=settings.seed,
    )


def open_or_create(
    folder: Path,
    settings: Settings,
    data_dir: Path | None = None,
    *,
    who: str = "",
    progress: Progress | None = None,
) -> tuple[Service, list[str], Arrays]:
    """The store in a folder, made if it is not there yet, and what is there of its examples.

    A base that has to be trained first is kept in `FOLDER.base`, until the store is there.

    Returns:
        The store; ids of rows, and the rows, as `Service.train` reads them.

    Raises:
        ValueError: a store of other settings, or settings that do not fit.
    """
    settings = _with_whole_paths(settings, data_dir)
    if (folder / "ledger.jsonl").exists():
        service = Service(folder)
        if settings.size is None:  # what is left of a folder may look otherwise
            settings = dataclasses.replace(settings, size=settings_of(service).size)
        check_same(service, settings)
        return service, *examples_of(service, Moved(data_dir=data_dir))
    read = material.read(settings, data_dir)
    settings = dataclasses.replace(settings, size=read.size)
    largest = max(collections.Counter(read.groups).values())
    plan = plan_of(settings, read.config, len(read.ids), largest)
    check_new(folder, plan, read.config, read.ids, read.groups)
    source = {"settings": record_of(settings), "reading": read.reading}
    kept = folder.with_name(f"{folder.name}.base")
    check_link(kept)
    check_own(kept)
    # Of these very settings and images: another base may have learned what this store holds.
    run = kept / digest_of([source, tree.digest(read.public or {})])[:16]
    given = plan, read.config, _base(settings, read, run, progress), read.ids, read.examples
    service = create(folder, *given, groups=read.groups, source=source, who=who)
    shutil.rmtree(kept, ignore_errors=True)
    return service, read.ids, read.examples


def _with_whole_paths(settings: Settings, data_dir: Path | None) -> Settings:
    """Settings whose paths mean the same from any folder."""
    path = data.local_path(settings.data, data_dir)
    return dataclasses.replace(
        settings,
        data=settings.data if path is None else str(path),
        base=None if settings.base is None else Path(os.path.expanduser(settings.base)).absolute(),
    )


def _base(settings: Settings, read: Material, kept: Path, progress: Progress | None) -> Tree:
    if read.base is not None:
        return jax.device_get(read.base)
    assert read.public is not None and isinstance(read.config, vit.Config)
    return pretrain(
        read.config,
        read.public["x"],
        read.public["y"],
        Pretraining(epochs=30, batch_size=min(32, len(read.public["x"]))),
        fold(jax.random.key(settings.seed), "base"),
        folder=kept,
        progress=progress and functools.partial(progress, "base"),
    )
