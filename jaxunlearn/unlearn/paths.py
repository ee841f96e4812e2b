"""The retrain-equivalence study: the same stages in different orders, then local unlearning.

"On the Impossibility of Retrain Equivalence in Machine Unlearning" (arXiv 2510.16629): models that
were trained through the same stages in different orders forget the same data differently, so no
local method can bring all of them to the model that never saw it. `prepare` checks everything,
`execute` trains the stages (every shared prefix once), lets every path forget with every loss, and
measures.
"""

import dataclasses
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxunlearn.core import mesh as meshes
from jaxunlearn.core import tree
from jaxunlearn.core.run_folder import RunFolder, versions
from jaxunlearn.data import text
from jaxunlearn.evaluate.paths import refusal_phrases
from jaxunlearn.nn import decoder
from jaxunlearn.unlearn import _path_data, _path_metrics, _path_report, _path_training
from jaxunlearn.unlearn._path_data import Encoder, Part
from jaxunlearn.unlearn.language import LOCAL

Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Settings:
    """A path study; the defaults are those of the paper for Llama-3.2-1B, its data apart.

    Attributes:
        model: folder of a base model in Hugging Face's form, or a `.gguf` file.
        stages: the stages in their order without the forget stage's position, each
            `NAME=SOURCE[,n=N][,epochs=E]`; a SOURCE is `refusals`, `compliance:C` (or `U`, `R`),
            `tofu:SPLIT`, `gsm8k:SPLIT`, or
            the path of a JSON-lines file with `question` and `answer`.
        forget: name of the stage that is forgotten. If all its answers begin with "Sorry, I can not
            assist", the forget score is that of refusal phrases, else of the answers themselves.
        orders: `insertions` (the forget stage at every position, the others in their order),
            `permutations` (all of them), or orders written as `a,b,c`.
        losses: of the unlearning: ga, npo, simnpo (summed, the paper's), simnpo_length.
        rank: of the adapters, LoRA's r.
        alpha: of the adapters; their scale is alpha / rank.
        learning_rate: of the stages, AdamW without weight decay; 2 % warm-up, 2 % decay to a tenth.
        batch_size: sequences per step of a stage.
        unlearn_learning_rate: of the unlearning.
        unlearn_batch_size: sequences per step of the unlearning.
        unlearn_epochs: passes over the forget set.
        every: steps of unlearning between measurements.
        seeds: how many times everything is done, with other shuffles and adapters.
        seed: where all randomness comes from.
        max_tokens: the most tokens of a text.
        overlong: what happens to a question with its answer that has more: `error` or `drop`.
        probe: how many questions of each stage are measured; those of the test split where the
            source is `gsm8k:train`, else of the stage itself.
        attempts: answers sampled for each measured question of a `gsm8k` stage, to count those that
            are right (the paper: 5); 0: none.
        lane_width: runs of unlearning computed together; 0: one on a CPU, else as many as the
            memory holds by a rough estimate.
        model_shards: devices that each copy of the network is split over.
        remat: recompute layers in the backward pass, for longer texts in the same memory.
    """

    model: str = ""
    stages: tuple[str, ...] = (
        "tofu=tofu:full,epochs=4",
        "math=gsm8k:train,epochs=2",
        "safety=refusals,epochs=2",
    )
    forget: str = "safety"
    orders: tuple[str, ...] = ("insertions",)
    losses: tuple[str, ...] = ("ga", "npo", "simnpo")
    rank: int = 64
    alpha: float = 128.0
    learning_rate: float = 1e-5
    batch_size: int = 128
    unlearn_learning_rate: float = 1e-5
    unlearn_batch_size: int = 128
    unlearn_epochs: int = 1
    every: int = 2
    seeds: int = 1
    seed: int = 42
    max_tokens: int = 512
    overlong: Literal["error", "drop"] = "error"
    probe: int = 24
    attempts: int = 0
    lane_width: int = 0
    model_shards: int = 1
    remat: bool = False


@dataclasses.dataclass(frozen=True)
class Job:
    """A study whose settings have been checked and whose folder is ready; see `prepare`."""

    settings: Settings
    parts: dict[str, Part]
    orders: list[tuple[str, ...]]
    pretrained: decoder.Pretrained
    sets: dict[str, text.Sequences]
    probes: _path_metrics.Probes
    sampled: list[tuple[np.ndarray, np.ndarray, list[str]]]  # prompts, mask, right answers
    record: dict[str, Any]
    folder: RunFolder
    mesh: Mesh

    @property
    def prefixes(self) -> list[tuple[str, ...]]:
        """The stage runs: every distinct prefix of an order, once."""
        found = (order[:i] for order in self.all_orders for i in range(1, len(order) + 1))
        return list(dict.fromkeys(found))

    @property
    def all_orders(self) -> list[tuple[str, ...]]:
        """The orders, and those without the forget stage: models retrained from scratch."""
        return [*self.orders, *dict.fromkeys(map(self.retrained, self.orders))]

    def retrained(self, order: tuple[str, ...]) -> tuple[str, ...]:
        """The order of the model that never saw the forget set."""
        return tuple(name for name in order if name != self.settings.forget)

    @property
    def members(self) -> list[tuple[int, int, int]]:
        """(path, loss, seed) of every run of unlearning."""
        paths, losses = range(len(self.orders)), range(len(self.settings.losses))
        return list(itertools.product(paths, losses, range(self.settings.seeds)))

    @property
    def phases(self) -> dict[str, float]:
        """The phases in their order, with their expected shares of the work."""
        tokens = {
            name: data.tokens.size * self.parts[name].epochs for name, data in self.sets.items()
        }
        s = self.settings
        shares = {"+".join(p): float(tokens[p[-1]] * s.seeds) for p in self.prefixes}
        forget = self.sets[s.forget].tokens.size * s.unlearn_epochs
        return shares | {"unlearning": 2.0 * len(self.members) * forget, "evaluation": forget}


def devices(settings: Settings, n_devices: int) -> Mesh:
    """A mesh for the settings: an axis `models`, and with `model_shards` an axis `model`.

    On a CPU one device is enough: its cores share the work of one network.
    """
    shards = settings.model_shards
    if jax.default_backend() == "cpu":
        n_devices = min(n_devices, shards)
    if shards < 1 or n_devices % shards:
        raise ValueError(
            f"model_shards is {shards}; it must be at least 1 and divide the {n_devices} devices"
        )
    return meshes.make({"models": n_devices // shards} | ({"model": shards} if shards > 1 else {}))


def prepare(
    settings: Settings,
    *,
    out: str | os.PathLike,
    resume: bool = False,
    mesh: Mesh | None = None,
    data_dir: Path | None = None,
) -> Job:
    """Checks everything that can be wrong; nothing is written before all of it fits.

    Args:
        settings: of the study.
        out: output folder, new or (with `resume`) that of the same study.
        resume: go on with the study in `out`, if there is one.
        mesh: from `devices`; by default one device.
        data_dir: folder with `tofu/` and `gsm8k/`; by default `$TOFU_DIR` and `$GSM8K_DIR`.

    Raises:
        ValueError: a setting, a file or a folder does not fit; it is named.
    """
    parts = _parts(settings)
    orders = _orders(settings, list(parts))
    if not settings.model:
        raise ValueError("model is empty; a model's folder or .gguf file is needed")
    if not Path(settings.model).exists():
        raise ValueError(f"model is {settings.model!r}, which does not exist")
    of_stage = {
        name: _path_data.questions(part, settings.seed, data_dir) for name, part in parts.items()
    }
    split = mesh if mesh is not None and "model" in mesh.shape else None
    pretrained = decoder.from_pretrained(settings.model, dtype=jnp.float32, mesh=split)
    _path_training.check_rank(pretrained.params, settings)
    encoder = Encoder(pretrained, settings.max_tokens, settings.overlong)
    sets = {name: encoder.sequences(found) for name, found in of_stage.items()}
    label = refusal_phrases()[0]
    refuses = all(question.answer.startswith(label) for question in of_stage[settings.forget])
    asked = {
        name: _path_data.unseen(parts[name], data_dir) or found for name, found in of_stage.items()
    }
    probes = _path_metrics.probes(encoder, asked, settings.forget, settings.probe, refuses)
    record = {
        "settings": dataclasses.asdict(settings)
        | {"model": None, "model_sha256": tree.digest(pretrained.params)}
        | {"data_sha256": {name: tree.digest(data) for name, data in sets.items()}},
        "versions": versions(),
    }
    folder = RunFolder(out, record, {}, resume)
    job = Job(
        settings,
        parts,
        orders,
        pretrained,
        sets,
        probes,
        _sampled(settings, parts, encoder, asked),
        record,
        folder,
        mesh or meshes.make({"models": 1}),
    )
    folder.begin()
    return job


def execute(job: Job, *, progress: Progress = lambda phase, done, total: None) -> dict[str, Any]:
    """Runs a study; returns its results, which are also in its folder as `results.json`.

    Args:
        job: from `prepare`.
        progress: called as steps, runs and evaluations finish.
    """
    paths = _path_training.train_stages(job, progress)
    runs = _path_training.forget(job, paths, progress)
    progress("evaluation", 0, 1)
    results = _path_report.report(job, paths, runs, progress)
    job.folder.write_json("results.json", results)
    progress("evaluation", 1, 1)
    return results


def _sampled(
    settings: Settings,
    parts: dict[str, Part],
    encoder: Encoder,
    asked: dict[str, list[text.Question]],
) -> list[tuple[np.ndarray, np.ndarray, list[str]]]:
    """The prompts whose answers are sampled, with the right ones; see `Settings.attempts`."""
    stages = [name for name, part in parts.items() if part.source.startswith("gsm8k:")]
    if settings.attempts and not stages:
        raise ValueError(f"attempts is {settings.attempts}, but no stage's source is gsm8k:SPLIT")
    found = []
    for name in stages if settings.attempts else ():
        of_stage = asked[name][: settings.probe]
        finals = [question.extra["final"] for question in of_stage]
        prompts, mask = encoder.prompts(of_stage)
        context = encoder.pretrained.config.context
        if prompts.shape[1] >= context:
            raise ValueError(
                f"a question of stage {name} has {prompts.shape[1]} tokens, which leaves no room "
                f"for an answer: the context is {context}"
            )
        found.append((prompts, mask, finals))
    return found


def _parts(settings: Settings) -> dict[str, Part]:
    """The stages by name, all numbers of the settings checked."""
    for name in ("rank", "batch_size", "unlearn_batch_size", "unlearn_epochs", "every", "seeds"):
        if getattr(settings, name) < 1:
            raise ValueError(f"{name} is {getattr(settings, name)}; it must be at least 1")
    for name in ("alpha", "learning_rate", "unlearn_learning_rate"):
        if not 0 < getattr(settings, name) < float("inf"):
            raise ValueError(f"{name} is {getattr(settings, name)}; it must be positive")
    for name, least in {"probe": 1, "lane_width": 0, "attempts": 0}.items():
        if getattr(settings, name) < least:
            raise ValueError(f"{name} is {getattr(settings, name)}; it must be at least {least}")
    unknown = [loss for loss in settings.losses if loss not in LOCAL]
    if unknown or len(set(settings.losses)) < max(1, len(settings.losses)):
        raise ValueError(
            f"losses are {', '.join(settings.losses) or 'empty'}; each of {', '.join(LOCAL)} may "
            "be named once"
        )
    parts = [_path_data.parse(written) for written in settings.stages]
    names = [part.name for part in parts]
    if len(set(names)) < len(names):
        raise ValueError(f"stages are named {', '.join(names)}; a name is there twice")
    if settings.forget not in names:
        raise ValueError(f"forget is {settings.forget!r}; the stages are {', '.join(names)}")
    if len(names) < 2:
        raise ValueError("stages has one stage; one to keep is needed beside the one to forget")
    return {part.name: part for part in parts}


def _orders(settings: Settings, names: list[str]) -> list[tuple[str, ...]]:
    forget, others = settings.forget, [name for name in names if name != settings.forget]
    if settings.orders == ("insertions",):
        return [(*others[:i], forget, *others[i:]) for i in range(len(names))]
    if settings.orders == ("permutations",):
        return list(itertools.permutations(names))
    orders = [tuple(written.split(",")) for written in settings.orders]
    for order in orders:
        if sorted(order) != sorted(names):
            raise ValueError(
                f"orders has {','.join(order)!r}; insertions, permutations, or orders that name "
                f"each of {', '.join(names)} once are allowed"
            )
    if len(set(orders)) < max(2, len(orders)):
        raise ValueError(f"orders are {settings.orders}; at least two different ones are needed")
    return orders
