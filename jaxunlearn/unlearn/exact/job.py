"""From settings to a trained store: where the examples come from, the base, the plan."""

import collections
import dataclasses
import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxunlearn import data
from jaxunlearn.core import records, tree
from jaxunlearn.core.keys import fold
from jaxunlearn.core.tree import Tree
from jaxunlearn.nn import decoder, vit
from jaxunlearn.unlearn import _path_data as texts
from jaxunlearn.unlearn.exact import orders
from jaxunlearn.unlearn.exact.plan import Plan, Recipe
from jaxunlearn.unlearn.exact.plan import make as make_plan
from jaxunlearn.unlearn.exact.pretraining import Pretraining, pretrain
from jaxunlearn.unlearn.exact.service import Service, create
from jaxunlearn.unlearn.exact.store import Config, check_new, digest_of

Progress = Callable[[str, int, int], None]  # phase, done, total

_AUTHOR = 20  # questions about each of TOFU's authors, one after the other


@dataclasses.dataclass(frozen=True)
class Sizes:
    """A small ViT, where no pretrained one is given.

    Attributes:
        width: of the residual stream.
        layers: depth.
        heads: of the attention.
        mlp_width: of the hidden layer.
        patches: along each side of an image.
    """

    width: int = 64
    layers: int = 8
    heads: int = 4
    mlp_width: int = 128
    patches: int = 4


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is trained.

    Attributes:
        data: an image set, see `data.load`; or texts: `tofu:SPLIT`, whose authors are groups, or a
            JSON-lines file with `question`, `answer` and perhaps `group`.
        n_train: examples, the first of the set's fixed order; None: all (1,200 digits).
        n_val: validation images; None: all.
        base: folder of a Hugging Face ViT, or a language model (folder or .gguf); None: a small ViT
            is trained on `public` images.
        public: share of the training images that train the base. They are public: not in the store,
            and nobody can ask to delete them.
        sizes: of that small ViT.
        shards: m.
        slices: L.
        budget: B, orders of each shard.
        layers_per_slice: layers that a stage trains; None: as many as there are, shared evenly.
        capacity: examples that a slice has room for; None: four standard deviations above the mean.
        recipe: of all stages.
        max_tokens: the most tokens of a text.
        seed: of everything random.
    """

    data: str = "digits"
    n_train: int | None = None
    n_val: int | None = None
    base: Path | None = None
    public: float = 0.3
    sizes: Sizes = Sizes()
    shards: int = 3
    slices: int = 4
    budget: int = 4
    layers_per_slice: int | None = None
    capacity: int | None = None
    recipe: Recipe = Recipe(rank=8, alpha=16.0, learning_rate=4e-3, epochs=10, batch_size=16)
    max_tokens: int = 256
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Material:
    """What settings stand for.

    Attributes:
        ids: of the examples.
        groups: of the examples.
        examples: arrays [n, ...], see `networks`.
        test: arrays [k, ...] to judge by; None where there are none.
        public: images and labels that train the base; None if it is given.
        config: of the network.
    """

    ids: list[str]
    groups: list[str]
    examples: dict[str, np.ndarray]
    test: dict[str, np.ndarray] | None
    public: dict[str, np.ndarray] | None
    config: Config


def material(settings: Settings, data_dir: Path | None = None) -> Material:
    """Reads the examples.

    Raises:
        ValueError: a setting is not as described; it is named.
    """
    if settings.data.startswith("tofu:") or settings.data.endswith((".jsonl", ".json")):
        return _texts(settings, data_dir)
    return _images(settings, data_dir)


def plan_of(settings: Settings, config: Config, n: int, largest_group: int = 1) -> Plan:
    """The plan for n examples.

    Raises:
        ValueError: sizes that do not fit.
    """
    slices = settings.shards * settings.slices
    if min(settings.shards, settings.slices) < 1:
        raise ValueError(f"shards and slices are {settings.shards} and {settings.slices}; >= 1")
    per_slice = settings.layers_per_slice or config.n_layers // settings.slices
    if per_slice < 1:
        raise ValueError(
            f"slices is {settings.slices}; the network has {config.n_layers} layers, at least one "
            "is needed for each slice"
        )
    mean = n / slices
    # A hash decides which slice an example is in; nothing of the data itself may show in the plan.
    room = int(np.ceil(mean + 4 * np.sqrt(mean * largest_group)))
    return make_plan(
        settings.shards,
        orders.cyclic(settings.slices, settings.budget),
        settings.capacity or max(room, settings.recipe.batch_size),
        recipe=settings.recipe,
        layers_per_slice=per_slice,
        seed=settings.seed,
    )


def open_or_create(
    folder: Path,
    settings: Settings,
    own: Material,
    *,
    who: str = "",
    progress: Progress | None = None,
) -> Service:
    """The store in a folder, made if it is not there yet.

    A base that has to be trained first is kept in `FOLDER.base`, until the store is there.

    Raises:
        ValueError: a store of other settings, or settings that do not fit.
    """
    record = record_of(settings)
    if (folder / "ledger.jsonl").exists():
        service = Service(folder)
        check_same(service, record)
        return service
    largest = max(collections.Counter(own.groups).values())
    plan = plan_of(settings, own.config, len(own.ids), largest)
    check_new(folder, plan, own.config, own.ids, own.groups)
    kept = folder.with_name(f"{folder.name}.base")
    # Of these very settings and images: another base may have learned what this store holds.
    base = _base(
        settings, own, kept / digest_of([record, tree.digest(own.public or {})])[:16], progress
    )
    service = create(
        folder, plan, own.config, base, own.ids, groups=own.groups, source=record, who=who
    )
    shutil.rmtree(kept, ignore_errors=True)
    return service


def record_of(settings: Settings) -> dict[str, Any]:
    """Settings, JSON-like, as a store keeps them."""
    record = dataclasses.asdict(settings)
    record["base"] = None if settings.base is None else str(settings.base)
    return record


def settings_of(service: Service) -> Settings:
    """The settings that a store was made with.

    Raises:
        ValueError: it was made by a program of its own, which alone knows its examples.
    """
    record = service.files.source
    if record is None:
        raise ValueError(f"the store {service.folder} does not say where its examples come from")
    base = record["base"]
    parts = {"sizes": Sizes(**record["sizes"]), "recipe": Recipe(**record["recipe"])}
    return Settings(**record | parts | {"base": None if base is None else Path(base)})


def check_same(service: Service, record: dict[str, Any]) -> None:
    """Raises a ValueError that names the first setting in which a store differs.

    Where the data lies may have changed; that it is the same, `Service.verify` shows.
    """
    before = service.files.source
    if before is None:
        raise ValueError(f"the store {service.folder} was made by a program of its own")
    records.check_same(before, record, str(service.folder))


def _images(settings: Settings, data_dir: Path | None) -> Material:
    own = data.load(settings.data, settings.n_train, settings.n_val, data_dir=data_dir)
    x, x_val = (scaled(images) for images in (own.x_train, own.x_val))
    rows = np.arange(len(x))
    public = None
    if settings.base is None:
        public, rows = _split(settings, len(x))
        config = small_vit(settings, x.shape[1:], own.n_classes)
        public = {"x": x[public], "y": own.y_train[public]}
    else:
        config = vit.from_pretrained(settings.base, n_classes=own.n_classes)[0]
        if config.image != x.shape[1:]:
            raise ValueError(
                f"base reads images {list(config.image)}; those of {settings.data} are "
                f"{list(x.shape[1:])}"
            )
    ids = [f"train-{row}" for row in rows]
    examples = {"x": x[rows], "y": own.y_train[rows]}
    return Material(ids, ids, examples, {"x": x_val, "y": own.y_val}, public, config)


def scaled(images: np.ndarray) -> np.ndarray:
    """From -1 to 1: constants, since statistics of the examples would tell of deleted ones."""
    bright = images.astype(np.float32) / (255 if images.dtype == np.uint8 else 1)
    return bright * 2 - 1


def _split(settings: Settings, n: int) -> tuple[np.ndarray, np.ndarray]:
    if not 0 < settings.public < 1:
        raise ValueError(
            f"public is {settings.public}; without a base a share above 0 and below 1 is needed"
        )
    mixed = np.random.default_rng(settings.seed).permutation(n)
    n_public = round(settings.public * n)
    return np.sort(mixed[:n_public]), np.sort(mixed[n_public:])


def small_vit(settings: Settings, image: tuple[int, ...], n_classes: int) -> vit.Config:
    """The network that is trained where no base is given.

    Raises:
        ValueError: images that are not square, or patches that do not divide them.
    """
    height, width, channels = image
    s = settings.sizes
    if height != width or height % s.patches:
        raise ValueError(
            f"sizes.patches is {s.patches}; it must divide the side of a square image, and "
            f"{settings.data} has {height} x {width}"
        )
    patch = height // s.patches
    image = (height, width, channels)
    return vit.Config(image, patch, s.width, s.layers, s.heads, s.mlp_width, n_classes)


def _texts(settings: Settings, data_dir: Path | None) -> Material:
    if settings.base is None:
        raise ValueError("base is None; texts need a language model, a folder or a .gguf file")
    pretrained = decoder.from_pretrained(settings.base)
    part = texts.Part("data", settings.data, n=settings.n_train)
    questions = texts.questions(part, settings.seed, data_dir)
    found = texts.Encoder(pretrained, settings.max_tokens).sequences(questions)
    ids = [question.id for question in questions]
    if settings.data.startswith("tofu:"):
        groups = [f"{settings.data}/author-{i // _AUTHOR}" for i in range(len(ids))]
    else:
        groups = [str(q.extra.get("group", q.id)) for q in questions]
    examples = {
        "x": np.asarray(found.tokens),
        "where": np.asarray(found.where),
        "labels": np.asarray(found.labels),
    }
    return Material(ids, groups, examples, None, None, pretrained.config)


def _base(settings: Settings, own: Material, kept: Path, progress: Progress | None) -> Tree:
    if isinstance(own.config, decoder.Config):
        return jax.device_get(decoder.from_pretrained(str(settings.base)).params)
    if settings.base is not None:
        return jax.device_get(vit.from_pretrained(settings.base, n_classes=own.config.n_classes)[1])
    assert own.public is not None
    return pretrain(
        own.config,
        own.public["x"],
        own.public["y"],
        Pretraining(epochs=30, batch_size=32),
        fold(jax.random.key(settings.seed), "base"),
        folder=kept,
        progress=progress and functools.partial(progress, "base"),
    )
