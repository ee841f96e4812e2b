"""What is trained, as the command line and a store's record say it; read without JAX."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from jaxunlearn.core import records
from jaxunlearn.core.disk import DamagedError
from jaxunlearn.core.readers import reading
from jaxunlearn.exact.plan import StageRecipe, recipe_of
from jaxunlearn.exact.store import Store


@dataclasses.dataclass(frozen=True)
class Sizes:
    """A small ViT, where no pretrained one is given.

    Attributes:
        width: width of the residual stream.
        layers: number of layers.
        heads: attention heads.
        mlp_width: width of the hidden layer.
        patches: patches along each side of an image.
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
            JSON-lines file with `question`, `answer` and perhaps `id` and `group`. Images of a
            folder are known by their files.
        size: height and width that images are scaled to, those of `predict` as well; None: as they
            are, but 32, or the base's size, where those of a folder are of several sizes, which is
            said.
        n_train: number of examples, the first of the set's fixed order; None: all (1,200 digits,
            four fifths of other images in one piece).
        n_val: number of validation images; None: all.
        base: folder of a Hugging Face ViT, or a language model (folder or .gguf); None: a small ViT
            is trained on `public` images.
        public: share of the training images that train the base. They are public: not in the store,
            and nobody can ask to delete them.
        sizes: sizes of that small ViT.
        shards: number of shards, m.
        slices: slices of a shard, L.
        budget: orders of a shard, B.
        layers_per_slice: layers that a stage trains; None: as many as there are, shared evenly.
        capacity: examples that a slice has room for; None: four standard deviations above the mean.
        recipe: how each stage trains.
        direction: which layers the first stage trains, see `Plan`.
        lane_width: prefixes that train together as one program.
        max_tokens: the most tokens of a text; all are padded to it, so that no text's length shows
            in another's arithmetic.
        max_answer: the most tokens of an answer with its end of turn, likewise.
        seed: seed of everything random.
    """

    data: str = "digits"
    size: int | None = None
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
    recipe: StageRecipe = StageRecipe(
        rank=8, alpha=16.0, learning_rate=4e-3, epochs=10, batch_size=16, dropout=0.0
    )
    direction: Literal["top_down", "bottom_up"] = "top_down"
    lane_width: int = 1
    max_tokens: int = 256
    max_answer: int = 128
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Moved:
    """Paths of what was moved since a store was made.

    Attributes:
        data: file or folder of the examples.
        base: pretrained model.
        data_dir: folder of prepared data sets; by default `$TFDS_DATA_DIR`; of texts see `paths`.
    """

    data: str | None = None
    base: Path | None = None
    data_dir: Path | None = None


STAYED = Moved()


def record_of(settings: Settings) -> dict[str, Any]:
    """Settings, JSON-like, as a store keeps them."""
    record = dataclasses.asdict(settings)
    record["base"] = None if settings.base is None else str(settings.base)
    return record


def settings_of(store: Store, moved: Moved = STAYED) -> Settings:
    """The settings that a store was made with, with the paths where things lie now.

    Raises:
        ValueError: it was made by a program of its own, which alone knows its examples.
    """
    with reading(store.folder / "plan.json", DamagedError):
        record = _source(store)["settings"]
        base = record["base"] if moved.base is None else moved.base
        parts: dict[str, Any] = {
            "sizes": Sizes(**record["sizes"]),
            "recipe": recipe_of(record["recipe"]),
        }
        parts |= {"base": None if base is None else Path(base)}
        return Settings(**record | parts | {"data": moved.data or record["data"]})


def reading_of(store: Store) -> dict[str, Any]:
    """How a store's inputs are read, see `material.Material`.

    Raises:
        ValueError: as in `settings_of`.
    """
    with reading(store.folder / "plan.json", DamagedError):
        return _source(store)["reading"]


def classes_of(store: Store) -> list[str]:
    """Names of a store's classes; empty where they have only numbers."""
    source = store.files.source or {}
    return source.get("reading", {}).get("classes", [])


def check_same(store: Store, settings: Settings) -> None:
    """Raises a ValueError that names the first setting in which a store differs."""
    records.check_same(_source(store)["settings"], record_of(settings), str(store.folder))


def _source(store: Store) -> dict[str, Any]:
    if store.files.source is None:
        raise ValueError(f"the store {store.folder} does not say where its examples come from")
    return store.files.source
