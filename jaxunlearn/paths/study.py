"""The retrain-equivalence study: the same stages in different orders, then local unlearning.

"On the Impossibility of Retrain Equivalence in Machine Unlearning" (arXiv 2510.16629): models that
were trained through the same stages in different orders forget the same data differently, so no
local method can bring all of them to the model that never saw it. `prepare` checks everything,
`execute` trains the stages (every shared prefix once), lets every path forget with every loss, and
measures.
"""

import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxunlearn.core import checks, study, tree
from jaxunlearn.core import mesh as meshes
from jaxunlearn.core.run_folder import Progress, RunFolder, versions
from jaxunlearn.core.study import Where
from jaxunlearn.data import text
from jaxunlearn.evaluate.paths import refusal_phrases
from jaxunlearn.nn.language import decoder
from jaxunlearn.paths import forgetting, measures, stage_data
from jaxunlearn.paths import results as findings
from jaxunlearn.paths.job import Job
from jaxunlearn.paths.settings import Settings
from jaxunlearn.paths.stage_data import StageSource
from jaxunlearn.unlearn.language_objectives import LOCAL


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


@study.begins
def prepare(settings: Settings, where: Where) -> Job:
    """Checks everything that can be wrong; nothing is written before all of it fits.

    Args:
        settings: settings of the study.
        where: where; for its mesh see `devices`. The data folder holds `tofu/` and `gsm8k/`; by
            default they are `$TOFU_DIR` and `$GSM8K_DIR`.

    Raises:
        ValueError: a setting, a file or a folder does not fit; it is named.
    """
    parts = _parts(settings)
    orders = _orders(settings, list(parts))
    read = functools.partial(stage_data.questions, seed=settings.seed, data_dir=where.data_dir)
    of_stage = {name: read(part) for name, part in parts.items()}
    pretrained = _model(settings, where.mesh)
    config, written = pretrained.config, (pretrained.tokenizer, pretrained.chat_template)
    limits = config.vocabulary, config.context, settings.max_tokens, settings.overlong
    encoder = text.Encoder(*written, *limits)
    sets = {name: encoder.sequences(questions) for name, questions in of_stage.items()}
    label = refusal_phrases()[0]
    refuses = all(question.answer.startswith(label) for question in of_stage[settings.forget])
    asked = {
        name: stage_data.unseen(parts[name], where.data_dir) or questions
        for name, questions in of_stage.items()
    }
    probes = measures.probes(encoder, asked, settings.forget, settings.probe, refuses)
    record = {
        "settings": dataclasses.asdict(settings)
        | {"model": None, "model_sha256": tree.digest(pretrained.params)}
        | {"data_sha256": {name: tree.digest(data) for name, data in sets.items()}},
        "versions": versions(),
    }
    return Job(
        settings=settings,
        record=record,
        folder=RunFolder(where.out, record, {}, where.resume),
        mesh=where.mesh or meshes.make({"models": 1}),
        parts=parts,
        orders=orders,
        pretrained=pretrained,
        sets=sets,
        probes=probes,
        sampled=_sampled(settings, parts, encoder, asked),
    )


def execute(job: Job, progress: Progress = study.quiet) -> dict[str, Any]:
    """Runs a study; returns its results, which are also in its folder as `results.json`.

    Args:
        job: from `prepare`.
        progress: called as steps, runs and evaluations finish.
    """
    paths = forgetting.train_stages(job, progress)
    runs = forgetting.forget(job, paths, progress)
    progress("evaluation", 0, 1)
    results = findings.report(job, paths, runs, progress)
    job.folder.write_json("results.json", results)
    progress("evaluation", 1, 1)
    return results


run = study.runner(prepare, execute)


def _model(settings: Settings, mesh: Mesh | None) -> decoder.Pretrained:
    """The pretrained model, split over the devices of an axis `model`."""
    if not settings.model:
        raise ValueError("model is empty; a model's folder or .gguf file is needed")
    if not Path(settings.model).exists():
        raise ValueError(f"model is {settings.model!r}, which does not exist")
    split = mesh if mesh is not None and "model" in mesh.shape else None
    pretrained = decoder.from_pretrained(settings.model, dtype=jnp.float32, mesh=split)
    forgetting.check_rank(pretrained.params, settings)
    return pretrained


def _sampled(
    settings: Settings,
    parts: dict[str, StageSource],
    encoder: text.Encoder,
    asked: dict[str, list[text.Question]],
) -> list[tuple[np.ndarray, np.ndarray, list[str]]]:
    """The prompts whose answers are sampled, with the right ones; see `Settings.attempts`."""
    stages = [name for name, part in parts.items() if part.source.startswith("gsm8k:")]
    if settings.attempts and not stages:
        raise ValueError(f"attempts is {settings.attempts}, but no stage's source is gsm8k:SPLIT")
    sampled = []
    for name in stages if settings.attempts else ():
        of_stage = asked[name][: settings.probe]
        finals = [question.extra["final"] for question in of_stage]
        prompts, mask = encoder.prompts(of_stage)
        if prompts.shape[1] >= encoder.context:
            raise ValueError(
                f"a question of stage {name} has {prompts.shape[1]} tokens, which leaves no room "
                f"for an answer: the context is {encoder.context}"
            )
        sampled.append((prompts, mask, finals))
    return sampled


def _parts(settings: Settings) -> dict[str, StageSource]:
    """The stages by name, all numbers of the settings checked."""
    counts = ("rank", "batch_size", "unlearn_batch_size", "unlearn_epochs", "every", "seeds")
    for name in (*counts, "probe"):
        checks.at_least(name, getattr(settings, name), 1)
    for name in ("alpha", "learning_rate", "unlearn_learning_rate"):
        checks.positive(name, getattr(settings, name))
    for name in ("lane_width", "attempts"):
        checks.at_least(name, getattr(settings, name), 0)
    unknown = [loss for loss in settings.losses if loss not in LOCAL]
    if unknown or len(set(settings.losses)) < max(1, len(settings.losses)):
        raise ValueError(
            f"losses are {', '.join(settings.losses) or 'empty'}; each of {', '.join(LOCAL)} may "
            "be named once"
        )
    parts = [stage_data.parse(written) for written in settings.stages]
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
