"""The verbs of `jaxunlearn exact`: their options, and what they print.

What reads only a store's ledger loads no JAX; the other verbs load what they need when they run.
"""

import dataclasses
import functools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from jaxunlearn.cli.console import Bar, notices
from jaxunlearn.cli.exact_output import cost_in_words, costs, print_plainly, show_status, stored
from jaxunlearn.exact.settings import Moved, Settings, Sizes, classes_of
from jaxunlearn.exact.store import Store

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxunlearn.exact.planner import Outlook
    from jaxunlearn.exact.service import Service

Folder = Annotated[Path, tyro.conf.Positional]
Json = Annotated[Path | None, tyro.conf.arg(metavar="FILE")]


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """What shards, slices and orders cost, and how long they last.

    Attributes:
        shards: numbers of shards, m.
        slices: slices of a shard, L.
        budget: orders of a shard, B; those above L! are left out.
        base: folder of a Hugging Face ViT, or a language model; None: a small ViT.
        n_classes: classes of a ViT.
        image: height and width of the small ViT's images, and channels.
        sizes: sizes of the small ViT.
        layers_per_slice: see `train`.
        rank: rank of the adapters.
        json: also write the rows to this file.
    """

    shards: tuple[int, ...] = (5,)
    slices: tuple[int, ...] = (4,)
    budget: tuple[int, ...] = (1, 2, 4)
    base: Path | None = None
    n_classes: int = 10
    image: tuple[int, int, int] = (28, 28, 1)
    sizes: Sizes = Sizes()
    layers_per_slice: int | None = None
    rank: int = 8
    json: Json = None

    def run(self, console: Console) -> Any:
        """Prints a row for every combination."""
        rows = self._rows()
        table = Table("m", "L", "B", "requests", "deviation", "gain", "stages", "passes", "MB")
        for row in rows:
            sizes = (row.n_shards, row.n_slices, row.budget)
            lasts = (f"{value:.2f}" for value in (row.requests, row.std, row.gain))
            cost = (row.stages, f"{row.passes:.2f}", f"{row.bytes / 1e6:.2f}")
            table.add_row(*map(str, sizes), *lasts, *map(str, cost))
        console.print(table)
        console.print(
            "requests: expected deletions, uniform over slices, until everything must be trained\n"
            "again; gain: over one order; passes: over all data, for each epoch of a stage"
        )
        return [row._asdict() for row in rows]

    def _rows(self) -> "list[Outlook]":
        import jax

        from jaxunlearn.exact import material, opening, planner
        from jaxunlearn.exact.sliceable import network_of

        settings = Settings(
            sizes=self.sizes,
            layers_per_slice=self.layers_per_slice,
            recipe=dataclasses.replace(Settings().recipe, rank=self.rank),
        )
        if self.base is None:
            config = material.small_vit(settings, self.image, self.n_classes)
        else:
            config = material.config_of(self.base, self.n_classes)
        network = network_of(config)
        base = jax.eval_shape(lambda: network.model.init(jax.random.key(0))[0])
        rows = []
        for sizes in planner.combinations(self.shards, self.slices, self.budget):
            n_examples = 1000 * sizes["shards"] * sizes["slices"]
            plan = opening.plan_of(dataclasses.replace(settings, **sizes), config, n_examples)
            rows.append(planner.outlook(plan, network, base))
        if not rows:
            raise ValueError(
                f"budget is {list(self.budget)}; slices {list(self.slices)} have fewer orders"
            )
        return rows


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Makes a store and trains it; the same command goes on where it was interrupted.

    Attributes:
        store: folder of the store.
        settings: what is trained.
        data_dir: folder of prepared data sets; by default `$TFDS_DATA_DIR`; of texts see `paths`.
        devices: devices to use; by default all, on a CPU one per core.
        who: name for the ledger.
        json: also write the status to this file.
    """

    store: Folder
    settings: Annotated[Settings, tyro.conf.arg(name="")] = Settings()
    data_dir: Path | None = None
    devices: int | None = None
    who: str = ""
    json: Json = None

    def run(self, console: Console) -> Any:
        """Trains what is not trained yet."""
        from jaxunlearn.exact import opening

        mesh = _mesh(self.devices)
        begun = (self.store / "ledger.jsonl").exists()
        with _bar(self.settings.slices, base=self.settings.base is None and not begun) as bar:
            service, ids, examples = opening.open_or_create(
                self.store, self.settings, self.data_dir, who=self.who, progress=bar.update
            )
            for line in stored(service.status()):
                bar.progress.console.print(line, markup=False, highlight=False)
            progress = functools.partial(_level, bar)
            service.train(examples, ids, who=self.who, mesh=mesh, progress=progress)
        return show_status(service, console)


@dataclasses.dataclass(frozen=True)
class DeleteOptions:
    """Deletes examples: durable and effective when it returns. Nothing is trained.

    Attributes:
        store: folder of the store.
        ids: ids of the examples.
        group: groups, e.g. authors, all of whose examples are deleted.
        who: name for the ledger.
        json: also write what became of the requests to this file.
    """

    store: Folder
    ids: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    group: tuple[str, ...] = ()
    who: str = ""
    json: Json = None

    def run(self, console: Console) -> Any:
        """Deletes."""
        store = Store(self.store)
        before = store.surviving()
        outcomes = store.delete([*self.ids, *store.members(self.group)], who=self.who)
        for outcome in outcomes:
            state = "had been deleted before" if outcome.repeated else "is deleted"
            print_plainly(
                console,
                f"{outcome.example} {state}: slice {outcome.slice} of shard {outcome.shard}, "
                f"entry {outcome.entry}",
            )
        of_shards = costs(store, outcomes, before)
        for shard, cost in of_shards.items():
            print_plainly(console, cost_in_words(shard, cost))
        if store.needs_retraining():
            console.print("no shard is alive: run `jaxunlearn exact repair`")
        return [
            dataclasses.asdict(outcome) | {"cost": of_shards.get(outcome.shard)}
            for outcome in outcomes
        ]


@dataclasses.dataclass(frozen=True)
class PredictOptions:
    """What the store answers: to image files, to questions, or to its validation set.

    Attributes:
        store: folder of the store.
        files: PNG or JPEG files of the network's size; of a language model JSON-lines files with
            `question` and `answer`, whose probability is shown. None: the validation images.
        moved: paths of what was moved.
        json: also write the answers to this file.
    """

    store: Folder
    files: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    moved: Annotated[Moved, tyro.conf.arg(name="")] = Moved()
    json: Json = None

    def run(self, console: Console) -> Any:
        """Prints a line for each file or question, or the accuracy."""
        from jaxunlearn.exact import material
        from jaxunlearn.exact.service import Service

        service = Service(self.store)
        if service.network.output_arrays:  # a language model
            return self._questions(service, console)
        if self.files:
            logits = service.predict(material.read_images(service, self.files))
            classes = classes_of(service) or list(map(str, range(logits.shape[1])))
            best = logits.argmax(-1).tolist()
            answers = [
                {"file": str(file), "class": at, "name": classes[at], "logits": row.tolist()}
                for file, at, row in zip(self.files, best, logits, strict=True)
            ]
            for answer in answers:
                print_plainly(console, f"{answer['file']}: class {answer['name']}")
            return answers
        x, y = material.test_of(service, self.moved)
        accuracy = float((service.predict(x).argmax(-1) == y).mean())
        console.print(f"accuracy on {len(y)} validation images: {100 * accuracy:.2f} %")
        return {"accuracy": accuracy, "n": len(y)}

    def _questions(self, service: "Service", console: Console) -> Any:
        from jaxunlearn.exact import material

        if not self.files:
            raise ValueError(
                "files is empty; a language model needs JSON-lines files with question and answer"
            )
        ids, arrays = material.questions_of(service, self.files, self.moved)
        valid = arrays["labels"] >= 0
        logs = np.log(np.where(valid, service.predict(batch=16, **arrays), 1)).sum(-1)
        answers = [
            {"id": name, "tokens": int(n), "log_probability": float(log)}
            for name, n, log in zip(ids, valid.sum(-1), logs, strict=True)
        ]
        for answer in answers:
            each = math.exp(answer["log_probability"] / answer["tokens"])
            line = f"{answer['id']}: {each:.4f} per token, {answer['tokens']} tokens"
            print_plainly(console, line)
        return answers


@dataclasses.dataclass(frozen=True)
class StatusOptions:
    """What is there, what was deleted, what is served.

    Attributes:
        store: folder of the store.
        trigger: when to train again: if "all" or "any" shards have no order of `depth` stages left.
        depth: stages that an order must have to count.
        json: also write it to this file.
    """

    store: Folder
    trigger: Literal["all", "any"] = "all"
    depth: int = 1
    json: Json = None

    def run(self, console: Console) -> Any:
        """Prints it."""
        store = Store(self.store)
        needed = store.needs_retraining(trigger=self.trigger, depth=self.depth)
        status = show_status(store, console) | {"needs_retraining": needed}
        if needed and status["living_shards"]:
            console.print("it is time to train again: run `jaxunlearn exact repair`")
        return status


@dataclasses.dataclass(frozen=True)
class VerifyOptions:
    """Checks every byte of a store.

    Attributes:
        store: folder of the store.
        retrain: also train a prefix again from what is left of the examples, and compare bits.
        prefix: shard, order and number of stages of that prefix; by default the longest that is
            served.
        head: a checksum from `status --json` that the ledger must still have: nothing before it was
            cut off.
        moved: paths of what was moved.
        json: also write what was checked to this file.
    """

    store: Folder
    retrain: bool = False
    prefix: tuple[int, int, int] | None = None
    head: str | None = None
    moved: Annotated[Moved, tyro.conf.arg(name="")] = Moved()
    json: Json = None

    def run(self, console: Console) -> Any:
        """Checks."""
        from jaxunlearn.exact import material
        from jaxunlearn.exact.service import Service

        service, ids, examples = Service(self.store), None, None
        if self.prefix is not None and not self.retrain:
            raise ValueError("prefix is given without retrain; it says what to train again")
        if self.retrain:
            ids, examples = material.examples_of(service, self.moved)
        checked = service.verify(examples, self.prefix, ids=ids, head=self.head)
        console.print(
            f"{checked['entries']} entries of the ledger and {checked['orders']} orders are whole"
        )
        if checked["prefix"] is not None:
            a, b, depth = checked["prefix"]
            console.print(f"order {b} of shard {a}: {depth} stages trained again to the same bits")
        return checked


@dataclasses.dataclass(frozen=True)
class RepairOptions:
    """Trains orders that lost stages anew, on what is left, while others serve.

    Attributes:
        store: folder of the store.
        below: only orders with fewer stages than this; by default all that lost any.
        moved: paths of what was moved.
        devices: devices to use, see `train`.
        who: name for the ledger.
        json: also write the status to this file.
    """

    store: Folder
    below: int | None = None
    moved: Annotated[Moved, tyro.conf.arg(name="")] = Moved()
    devices: int | None = None
    who: str = ""
    json: Json = None

    def run(self, console: Console) -> Any:
        """Trains."""
        from jaxunlearn.exact import material
        from jaxunlearn.exact.service import Service

        mesh, service = _mesh(self.devices), Service(self.store)
        ids, examples = material.examples_of(service, self.moved)
        with _bar(service.plan.n_slices, base=False) as bar:
            progress = functools.partial(_level, bar)
            options: dict[str, Any] = {"who": self.who, "mesh": mesh, "progress": progress}
            trained = service.repair(examples, ids, below=self.below, **options)
        console.print(f"{len(trained)} orders were trained")
        return show_status(service, console)


VERBS: dict[str, Any] = {
    "plan": PlanOptions,
    "train": TrainOptions,
    "delete": DeleteOptions,
    "predict": PredictOptions,
    "status": StatusOptions,
    "verify": VerifyOptions,
    "repair": RepairOptions,
}


def parse(verb: str, argv: list[str]) -> Any:
    """The options of a verb; a mistake in their form, or `--help`, ends the program."""
    return tyro.cli(VERBS[verb], args=argv, prog=f"jaxunlearn exact {verb}")


def _mesh(n_devices: int | None) -> "Mesh":
    import jax

    from jaxunlearn.core import mesh

    n = mesh.cores() if n_devices is None else n_devices
    try:
        mesh.start(n)
    except ValueError:  # JAX already runs in this process: take what it has
        if n_devices is not None:
            raise
        n = jax.device_count()
    return mesh.make({"models": n})


def _bar(n_levels: int, *, base: bool) -> Bar:
    """Over the base and all stages; stage j reads j slices."""
    phases = {"base": 1.0} if base else {}
    phases |= {f"stage {level}": float(level) for level in range(1, n_levels + 1)}
    return Bar(notices(), phases)


def _level(bar: Bar, level: int, done: int, total: int) -> None:
    bar.update(f"stage {level}", done, total)
