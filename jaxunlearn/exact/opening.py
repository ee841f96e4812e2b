"""From settings to a store: the plan, and the base."""

import collections
import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from jaxunlearn.core import tree
from jaxunlearn.core.keys import fold
from jaxunlearn.core.tree import Tree
from jaxunlearn.exact import material, orders
from jaxunlearn.exact.material import Arrays, Material, examples_of
from jaxunlearn.exact.plan import Plan
from jaxunlearn.exact.plan import make as make_plan
from jaxunlearn.exact.pretraining import Pretraining, pretrain
from jaxunlearn.exact.service import Service, create
from jaxunlearn.exact.settings import Settings, Where, check_same, placed, record_of
from jaxunlearn.exact.store import Config, check_new, digest_of
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
    settings = placed(settings, data_dir)
    if (folder / "ledger.jsonl").exists():
        service = Service(folder)
        check_same(service, settings)
        return service, *examples_of(service, Where(data_dir=data_dir))
    own = material.read(settings, data_dir)
    largest = max(collections.Counter(own.groups).values())
    plan = plan_of(settings, own.config, len(own.ids), largest)
    check_new(folder, plan, own.config, own.ids, own.groups)
    source = {"settings": record_of(settings), "reading": own.reading}
    kept = folder.with_name(f"{folder.name}.base")
    # Of these very settings and images: another base may have learned what this store holds.
    base = _base(
        settings, own, kept / digest_of([source, tree.digest(own.public or {})])[:16], progress
    )
    service = create(
        folder,
        plan,
        own.config,
        base,
        own.ids,
        own.examples,
        groups=own.groups,
        source=source,
        who=who,
    )
    shutil.rmtree(kept, ignore_errors=True)
    return service, own.ids, own.examples


def _base(settings: Settings, own: Material, kept: Path, progress: Progress | None) -> Tree:
    if own.base is not None:
        return jax.device_get(own.base)
    assert own.public is not None and isinstance(own.config, vit.Config)
    return pretrain(
        own.config,
        own.public["x"],
        own.public["y"],
        Pretraining(epochs=30, batch_size=min(32, len(own.public["x"]))),
        fold(jax.random.key(settings.seed), "base"),
        folder=kept,
        progress=progress and functools.partial(progress, "base"),
    )
