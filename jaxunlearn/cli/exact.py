"""A store that serves a model, deletes examples from it exactly, and can prove it (S3T).

usage: jaxunlearn exact VERB [options]

  plan      what shards, slices and orders cost, and how long they last
  train     makes a store and trains it; goes on where it was interrupted
  delete    deletes examples: durable and effective when it returns
  predict   what the store answers, to images, to questions, or to its validation set
  status    what is there, what was deleted, what is served
  verify    checks every byte, and with --retrain trains a prefix again and compares bits
  repair    trains orders that lost stages anew, on what is left, while others serve

`jaxunlearn exact VERB --help` lists a verb's options.
"""

import dataclasses
import functools
import json
import math
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from jaxunlearn.cli.console import FAILED, INTERRUPTED, OK, Bar, error
from jaxunlearn.core import mesh
from jaxunlearn.core.disk import DamagedError, replacing
from jaxunlearn.exact import material, opening, planner
from jaxunlearn.exact.service import Service
from jaxunlearn.exact.settings import Settings, Sizes, Where
from jaxunlearn.exact.store import network_of
from jaxunlearn.nn.language import decoder

Store = Annotated[Path, tyro.conf.Positional]
Json = Annotated[Path | None, tyro.conf.arg(metavar="FILE")]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What shards, slices and orders cost, and how long they last.

    Attributes:
        shards: m, one or several.
        slices: L, one or several.
        budget: B, one or several; those above L! are left out.
        base: folder of a Hugging Face ViT, or a language model; None: a small ViT.
        n_classes: of a ViT.
        image: height and width of the small ViT's images, and channels.
        sizes: of the small ViT.
        layers_per_slice: see `train`.
        rank: of the adapters.
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
        for own in planner.combinations(self.shards, self.slices, self.budget):
            own_settings = dataclasses.replace(settings, **own)
            plan = opening.plan_of(own_settings, config, 1000 * own["shards"] * own["slices"])
            rows.append(planner.outlook(plan, network, base)._asdict())
        if not rows:
            raise ValueError(
                f"budget is {list(self.budget)}; slices {list(self.slices)} have fewer orders"
            )
        table = Table("m", "L", "B", "requests", "deviation", "gain", "stages", "passes", "MB")
        for row in rows:
            requests, std, gain = (f"{row[name]:.2f}" for name in ("requests", "std", "gain"))
            sizes = (row["n_shards"], row["n_slices"], row["budget"])
            cost = (f"{row['passes']:.2f}", f"{row['bytes'] / 1e6:.2f}")
            table.add_row(*map(str, sizes), requests, std, gain, str(row["stages"]), *cost)
        console.print(table)
        console.print(
            "requests: expected deletions, uniform over slices, until everything must be trained\n"
            "again; gain: over one order; passes: over all data, for each epoch of a stage"
        )
        return rows


@dataclasses.dataclass(frozen=True)
class Train:
    """Makes a store and trains it; the same command goes on where it was interrupted.

    Attributes:
        store: its folder.
        settings: what is trained.
        data_dir: folder of prepared data sets; by default `$TFDS_DATA_DIR`; of texts see `paths`.
        devices: devices to use; by default all, on a CPU one per core.
        who: is written to the ledger.
        json: also write the status to this file.
    """

    store: Store
    settings: Annotated[Settings, tyro.conf.arg(name="")] = Settings()
    data_dir: Path | None = None
    devices: int | None = None
    who: str = ""
    json: Json = None

    def run(self, console: Console) -> Any:
        """Trains what is not trained yet."""
        devices = _devices(self.devices)
        begun = (self.store / "ledger.jsonl").exists()
        with _bar(self.settings.slices, base=self.settings.base is None and not begun) as bar:
            service, ids, examples = opening.open_or_create(
                self.store, self.settings, self.data_dir, who=self.who, progress=bar.update
            )
            service.train(
                examples,
                ids,
                who=self.who,
                mesh=devices,
                progress=functools.partial(_level, bar),
            )
        return _show_status(service, console)


@dataclasses.dataclass(frozen=True)
class Delete:
    """Deletes examples: durable and effective when it returns. Nothing is trained.

    Attributes:
        store: its folder.
        ids: of the examples.
        group: all examples of this group, e.g. an author.
        who: is written to the ledger.
        json: also write what became of the requests to this file.
    """

    store: Store
    ids: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    group: tuple[str, ...] = ()
    who: str = ""
    json: Json = None

    def run(self, console: Console) -> Any:
        """Deletes."""
        service = Service(self.store)
        found = service.delete([*self.ids, *service.members(self.group)], who=self.who)
        for outcome in found:
            state = "had been deleted before" if outcome.repeated else "is deleted"
            console.print(
                f"{outcome.example} {state}: slice {outcome.slice} of shard {outcome.shard}, "
                f"entry {outcome.entry}",
                markup=False,
                highlight=False,
            )
        if service.needs_retraining():
            console.print("no shard is alive: run `jaxunlearn exact repair`")
        return [dataclasses.asdict(outcome) for outcome in found]


@dataclasses.dataclass(frozen=True)
class Predict:
    """What the store answers: to image files, to questions, or to its validation set.

    Attributes:
        store: its folder.
        files: PNG or JPEG files of the network's size; of a language model JSON-lines files with
            `question` and `answer`, whose probability is shown. None: the validation images.
        where: things lie now, if they were moved.
        json: also write the answers to this file.
    """

    store: Store
    files: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    where: Annotated[Where, tyro.conf.arg(name="")] = Where()
    json: Json = None

    def run(self, console: Console) -> Any:
        """Prints a line for each file or question, or the accuracy."""
        service = Service(self.store)
        if isinstance(service.files.config, decoder.Config):
            return self._questions(service, console)
        if self.files:
            logits = service.predict(material.read_images(service, self.files))
            found = [
                {"file": str(file), "class": int(own.argmax()), "logits": own.tolist()}
                for file, own in zip(self.files, logits, strict=True)
            ]
            for one in found:
                line = f"{one['file']}: class {one['class']}"
                console.print(line, markup=False, highlight=False)
            return found
        x, y = material.test_of(service, self.where)
        accuracy = float((service.predict(x).argmax(-1) == y).mean())
        console.print(f"accuracy on {len(y)} validation images: {100 * accuracy:.2f} %")
        return {"accuracy": accuracy, "n": len(y)}

    def _questions(self, service: Service, console: Console) -> Any:
        if not self.files:
            raise ValueError(
                "files is empty; a language model needs JSON-lines files with question and answer"
            )
        ids, arrays = material.questions_of(service, self.files, self.where)
        valid = arrays["labels"] >= 0
        logs = np.log(np.where(valid, service.predict(batch=16, **arrays), 1)).sum(-1)
        found = [
            {"id": name, "tokens": int(n), "log_probability": float(log)}
            for name, n, log in zip(ids, valid.sum(-1), logs, strict=True)
        ]
        for one in found:
            each = math.exp(one["log_probability"] / one["tokens"])
            line = f"{one['id']}: {each:.4f} per token, {one['tokens']} tokens"
            console.print(line, markup=False, highlight=False)
        return found


@dataclasses.dataclass(frozen=True)
class Status:
    """What is there, what was deleted, what is served.

    Attributes:
        store: its folder.
        trigger: when to train again: if "all" or "any" shards have no order of `depth` stages left.
        depth: stages that an order must have to count.
        json: also write it to this file.
    """

    store: Store
    trigger: Literal["all", "any"] = "all"
    depth: int = 1
    json: Json = None

    def run(self, console: Console) -> Any:
        """Prints it."""
        service = Service(self.store)
        needed = service.needs_retraining(trigger=self.trigger, depth=self.depth)
        found = _show_status(service, console) | {"needs_retraining": needed}
        if needed and found["living_shards"]:
            console.print("it is time to train again: run `jaxunlearn exact repair`")
        return found


@dataclasses.dataclass(frozen=True)
class Verify:
    """Checks every byte of a store.

    Attributes:
        store: its folder.
        retrain: also train a prefix again from what is left of the examples, and compare bits.
        prefix: which one: shard, order, number of stages; by default the longest that is served.
        head: a checksum from `status --json` that the ledger must still have: nothing before it was
            cut off.
        where: things lie now, if they were moved.
        json: also write what was checked to this file.
    """

    store: Store
    retrain: bool = False
    prefix: tuple[int, int, int] | None = None
    head: str | None = None
    where: Annotated[Where, tyro.conf.arg(name="")] = Where()
    json: Json = None

    def run(self, console: Console) -> Any:
        """Checks."""
        service, ids, examples = Service(self.store), None, None
        if self.prefix is not None and not self.retrain:
            raise ValueError("prefix is given without retrain; it says what to train again")
        if self.retrain:
            ids, examples = material.examples_of(service, self.where)
        found = service.verify(examples, self.prefix, ids=ids, head=self.head)
        console.print(
            f"{found['entries']} entries of the ledger and {found['orders']} orders are whole"
        )
        if found["prefix"] is not None:
            a, b, depth = found["prefix"]
            console.print(f"order {b} of shard {a}: {depth} stages trained again to the same bits")
        return found


@dataclasses.dataclass(frozen=True)
class Repair:
    """Trains orders that lost stages anew, on what is left, while others serve.

    Attributes:
        store: its folder.
        below: only orders with fewer stages than this; by default all that lost any.
        where: things lie now, if they were moved.
        devices: see `train`.
        who: is written to the ledger.
        json: also write the status to this file.
    """

    store: Store
    below: int | None = None
    where: Annotated[Where, tyro.conf.arg(name="")] = Where()
    devices: int | None = None
    who: str = ""
    json: Json = None

    def run(self, console: Console) -> Any:
        """Trains."""
        devices, service = _devices(self.devices), Service(self.store)
        ids, examples = material.examples_of(service, self.where)
        with _bar(service.plan.n_slices, base=False) as bar:
            trained = service.repair(
                examples,
                ids,
                below=self.below,
                who=self.who,
                mesh=devices,
                progress=functools.partial(_level, bar),
            )
        console.print(f"{len(trained)} orders were trained")
        return _show_status(service, console)


VERBS: dict[str, Any] = {
    kind.__name__.lower(): kind for kind in (Plan, Train, Delete, Predict, Status, Verify, Repair)
}


def main(argv: list[str]) -> int:
    """Runs `jaxunlearn exact`.

    Returns:
        The exit code: 0, 1 (a run failed, or a store is damaged), 2 (bad input, nothing done), 130
        (interrupted).
    """
    if argv[:1] in (["--help"], ["-h"]):
        print(__doc__)
        return OK
    if not argv or argv[0] not in VERBS:
        known = ", ".join(VERBS)
        return error(f"exact: verb is {argv[0] if argv else ''!r}; known verbs: {known}")
    verb = tyro.cli(VERBS[argv[0]], args=argv[1:], prog=f"jaxunlearn exact {argv[0]}")
    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        if verb.json is not None and (
            verb.json.is_dir() or not verb.json.absolute().parent.is_dir()
        ):
            raise ValueError(f"json is {str(verb.json)!r}; a file in an existing folder is needed")
        found = verb.run(console)
        if verb.json is not None:
            with replacing(verb.json) as file:
                file.write((json.dumps(found, indent=1) + "\n").encode())
    except KeyboardInterrupt:
        print("interrupted; what is finished is kept. Go on with", file=sys.stderr)
        print(f"  {shlex.join(['jaxunlearn', 'exact', *argv])}", file=sys.stderr)
        return INTERRUPTED
    except (DamagedError, ArithmeticError) as failure:
        error(str(failure))
        return FAILED
    except (ValueError, OSError) as failure:
        return error(str(failure))
    return OK


def _devices(wanted: int | None) -> Any:
    n = mesh.cores() if wanted is None else wanted
    try:
        mesh.start(n)
    except ValueError:  # JAX already runs in this process: take what it has
        if wanted is not None:
            raise
        n = jax.device_count()
    return mesh.make({"models": n})


def _bar(n_levels: int, *, base: bool) -> Bar:
    """Over the base and all stages; stage j reads j slices."""
    phases = {"base": 1.0} if base else {}
    phases |= {f"stage {level}": float(level) for level in range(1, n_levels + 1)}
    return Bar(Console(stderr=True), phases)


def _level(bar: Bar, level: int, done: int, total: int) -> None:
    bar.update(f"stage {level}", done, total)


def _show_status(service: Service, console: Console) -> dict[str, Any]:
    found = service.status()
    console.print(
        f"{found['examples']} examples, {found['deleted']} of them deleted; "
        f"{found['living_shards']} of {found['shards']} shards are alive; "
        f"{found['bytes'] / 1e6:.1f} MB",
        highlight=False,
    )
    table = Table("shard", *(f"order {b}" for b in range(found["budget"])), "serves")
    depth, order = found["serves"]["depth"], found["serves"]["order"]
    for shard, left in enumerate(found["stages_left"]):
        serves = f"order {order[shard]}, {depth[shard]} stages" if depth[shard] else "nothing"
        table.add_row(str(shard), *map(str, left), serves)
    console.print(table, "stages left of every order", sep="")
    if found["empty_slices"]:
        console.print(
            f"{found['empty_slices']} slices hold no example: what reads them learns none"
        )
    if found["needs_retraining"]:
        console.print("no shard is alive: run `jaxunlearn exact repair`")
    return found
