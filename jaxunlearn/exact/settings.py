"""What is trained, as the command line and a store's record say it."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from jaxunlearn import data
from jaxunlearn.core import records
from jaxunlearn.exact.plan import Recipe, recipe_of
from jaxunlearn.exact.service import Service


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
            JSON-lines file with `question`, `answer` and perhaps `id` and `group`. Images of a
            folder are known by their files.
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
        direction: see `Plan`.
        lane_width: prefixes that train together as one program.
        max_tokens: the most tokens of a text; all are padded to it, so that no text's length shows
            in another's arithmetic.
        max_answer: likewise of an answer with its end of turn.
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
    recipe: Recipe = Recipe(
        rank=8, alpha=16.0, learning_rate=4e-3, epochs=10, batch_size=16, dropout=0.0
    )
    direction: Literal["top_down", "bottom_up"] = "top_down"
    lane_width: int = 1
    max_tokens: int = 256
    max_answer: int = 128
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Where:
    """Where things lie now, if not where they were when a store was made.

    Attributes:
        data: the file or folder of the examples.
        base: the pretrained model.
        data_dir: folder of prepared data sets; by default `$TFDS_DATA_DIR`; of texts see `paths`.
    """

    data: str | None = None
    base: Path | None = None
    data_dir: Path | None = None


def placed(settings: Settings, data_dir: Path | None) -> Settings:
    """With whole paths, so that they mean the same from any folder."""
    found = data.local_path(settings.data, data_dir)
    return dataclasses.replace(
        settings,
        data=settings.data if found is None else str(found),
        base=None if settings.base is None else settings.base.expanduser().absolute(),
    )


def record_of(settings: Settings) -> dict[str, Any]:
    """Settings, JSON-like, as a store keeps them."""
    record = dataclasses.asdict(settings)
    record["base"] = None if settings.base is None else str(settings.base)
    return record


def settings_of(service: Service, where: Where | None = None) -> Settings:
    """The settings that a store was made with, and where things lie now.

    Raises:
        ValueError: it was made by a program of its own, which alone knows its examples.
    """
    record = _source(service)["settings"]
    where = where or Where()
    base = record["base"] if where.base is None else where.base
    parts: dict[str, Any] = {
        "sizes": Sizes(**record["sizes"]),
        "recipe": recipe_of(record["recipe"]),
    }
    parts |= {"base": None if base is None else Path(base), "data": where.data or record["data"]}
    return Settings(**record | parts)


def reading_of(service: Service) -> dict[str, Any]:
    """How a store's inputs are read, see `material.Material`.

    Raises:
        ValueError: as in `settings_of`.
    """
    return _source(service)["reading"]


def check_same(service: Service, settings: Settings) -> None:
    """Raises a ValueError that names the first setting in which a store differs."""
    records.check_same(_source(service)["settings"], record_of(settings), str(service.folder))


def _source(service: Service) -> dict[str, Any]:
    if service.files.source is None:
        raise ValueError(f"the store {service.folder} does not say where its examples come from")
    return service.files.source
