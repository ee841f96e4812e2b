"""The attribution job: which training points a model's answers on validation points depend on.

Members are trained on random subsets, datamodels are regressed on the margins that they give, and
judged on held-out members; TRAK, which needs a few full models only, stands beside them.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import evaluate
from jaxunlearn.attribution import datamodels, members, trak
from jaxunlearn.comparison import estimates
from jaxunlearn.comparison.models import (
    ModelsJob,
    keys_of,
    rows_of,
    run_lanes,
    training_of_one,
    with_data,
)
from jaxunlearn.comparison.settings import ATTRIBUTE_RENAMED, check_run
from jaxunlearn.comparison.settings import AttributeSettings as Settings
from jaxunlearn.comparison.weights import default_network, network_for
from jaxunlearn.core import checks, losses, records, study
from jaxunlearn.core import mesh as meshes
from jaxunlearn.core.run_folder import Progress, RunFolder, run_record
from jaxunlearn.core.study import Where
from jaxunlearn.unlearn import Problem
from jaxunlearn.unlearn.methods import check_settings

# What is only read off finished models, and may change when a run is resumed.
_READ_OFF = ("targets", "shown", "method")


@dataclasses.dataclass(frozen=True)
class Job(ModelsJob[Settings]):
    """Work whose settings have been checked and whose folder is ready; see `prepare`."""

    @property
    def phases(self) -> dict[str, float]:
        """The phases in their order, with their expected shares of the work."""
        settings = self.settings
        subset, checkpoints = settings.subset_fraction, settings.checkpoints
        phases = {"members": subset * settings.members, "held_out": subset * settings.held_out}
        if checkpoints:
            phases |= {"checkpoints": checkpoints, "trak": checkpoints}
        return phases | {"regression": 0.05 * settings.members}


@study.begins
def prepare(settings: Settings, where: Where) -> Job:
    """Checks everything that can be wrong before work starts.

    Args:
        settings: what is attributed.
        where: where; the devices have an axis `models`.

    Raises:
        ValueError: bad settings or a folder that does not fit; nothing has been written then.
    """
    _check(settings)
    settings, dataset = with_data(settings, where.data_dir)
    n, m = len(dataset.x_train), len(dataset.x_val)
    name = settings.model or default_network(dataset)
    settings = dataclasses.replace(settings, model=name)
    estimates.check_members(settings.members, settings.subset_fraction, n, settings.training)
    n_members = settings.members + settings.held_out
    estimates.check_space(where.out, n_members, n + m, dataset.n_classes)
    outside = [at for at in settings.targets if not 0 <= at < m]
    if outside:
        raise ValueError(f"targets has {outside[0]}; there are validation points 0 to {m - 1}")
    if not 1 <= settings.shown <= n // 2:
        raise ValueError(f"shown is {settings.shown}; it must lie in 1 to {n // 2}")
    model = network_for(name, settings.multiply_adds, dataset)
    record = run_record(settings, data=dataset.arrays)
    for name in _READ_OFF:
        del record["settings"][name]
    x, y = jnp.asarray(dataset.x_train), jnp.asarray(dataset.y_train)
    return Job(
        settings=settings,
        record=record,
        folder=RunFolder(where.out, record, {}, where.resume, ATTRIBUTE_RENAMED),
        mesh=where.mesh or meshes.make({"models": 1}),
        dataset=dataset,
        problem=Problem(x, y, None, None, dataset.n_classes),  # nothing is to be forgotten
        model=model,
    )


def _check(settings: Settings) -> None:
    check_settings("training", settings.training)
    check_run(settings.seed, settings.lane_width)
    for name, least in {"held_out": 3, "checkpoints": 0, "features": 1}.items():
        checks.at_least(name, getattr(settings, name), least)
    if not 0 < settings.l2 < np.inf:
        raise ValueError(f"l2 is {settings.l2}; it must be finite and positive")
    if settings.method not in ("ridge", "lasso", "difference"):
        raise ValueError(f"method is {settings.method!r}; it must be ridge, lasso or difference")
    if not settings.targets:
        raise ValueError("targets is empty; at least one validation point is needed")


def execute(job: Job, progress: Progress = study.quiet) -> dict[str, Any]:
    """Does the work; writes `results.json`, `datamodel.npz` and, with TRAK, `trak.npz`.

    `datamodel.npz` holds `weights` [n, m], `intercept` [m] and `penalty` [m] of the validation
    points' margins; `trak.npz` holds `scores` [n, m]. A run that was stopped goes on from its
    finished models to the same bits.

    Args:
        job: from `prepare`.
        progress: called as models finish.

    Returns:
        The contents of `results.json`: `lds` by kind of attribution, summarised over validation
        points; `targets` with the most helpful and harmful training points; seconds by phase.

    Raises:
        NonFiniteError: a member diverged (it is named); those before it are kept.
    """
    fitted = _members(job, "members", job.settings.members, progress)
    judges = _members(job, "held_out", job.settings.held_out, progress)
    full = _checkpoints(job, progress) if job.settings.checkpoints else None
    with meshes.together():
        if meshes.is_first():
            _conclude(job, fitted, judges, full, progress)
    return records.read(job.folder.path / "results.json")


run = study.runner(prepare, execute)


def _conclude(
    job: Job,
    fitted: members.Outputs,
    judges: members.Outputs,
    full: dict[str, Any] | None,
    progress: Progress,
) -> None:
    """From all models to the results, in one process."""
    settings = job.settings
    masks, margins = _margins(job, fitted)
    others = {} if full is None else {"trak": _trak(job, full, progress)}
    progress("regression", 0, 1)
    alone = job.mesh if jax.process_count() == 1 else None
    datamodel = datamodels.fit(masks, margins, method=settings.method, mesh=alone)
    held_out = _margins(job, judges)
    kinds = {"datamodel": datamodel.weights} | others
    job.folder.write_arrays("datamodel.npz", vars(datamodel))
    if others:
        job.folder.write_arrays("trak.npz", {"scores": others["trak"]})
    results = {
        "schema": 1,
        "lds": {name: _lds(weights, *held_out) for name, weights in kinds.items()},
        "targets": [_extremes(job, at, datamodel.weights[:, at]) for at in settings.targets],
        "seconds": job.folder.seconds,
        **rows_of(job.dataset),
        **job.record,
    }
    results["settings"] = results["settings"] | {
        name: getattr(settings, name) for name in _READ_OFF
    }
    job.folder.write_json("results.json", results)
    progress("regression", 1, 1)


def _members(job: Job, phase: str, n_members: int, progress: Progress) -> members.Outputs:
    """Trains the members of a phase; their logits on all points."""
    first = {"members": 0, "held_out": job.settings.members}[phase]
    part = job.settings.subset_fraction
    return estimates.train_members(job, phase, n_members, part, progress, first)


def _margins(job: Job, sink: members.Outputs) -> tuple[np.ndarray, np.ndarray]:
    """Masks [M, n] and margins of the validation points [M, m]."""
    labels, n = jnp.asarray(job.dataset.y_val), len(job.dataset.x_train)
    parts = [  # not all logits at once
        np.asarray(losses.margins(jnp.asarray(sink.outputs[at : at + 256, n:]), labels))
        for at in range(0, len(sink.masks), 256)
    ]
    return sink.masks, np.concatenate(parts)


def _checkpoints(job: Job, progress: Progress) -> dict[str, Any]:
    """Models on all data: parameters and statistics, leading axis the models."""
    settings = job.settings
    return run_lanes(
        job,
        "checkpoints",
        training_of_one(job.model, settings.training),
        keys_of(settings.seed, "full", settings.checkpoints),
        progress,
        min(settings.lane_width, settings.checkpoints),
        job.folder.lanes("checkpoints"),
        indices=np.arange(len(job.dataset.x_train)),
    )


def _trak(job: Job, full: dict[str, Any], progress: Progress) -> np.ndarray:
    """Scores of the training points on the margins of the validation points, [n, m]."""
    settings, targets = job.settings, (job.dataset.x_val, job.dataset.y_val)
    progress("trak", 0, settings.checkpoints)
    scores = estimates.by_trak(trak.attribute, job, full, settings, targets)
    progress("trak", settings.checkpoints, settings.checkpoints)
    return scores[..., 0]


def _lds(weights: np.ndarray, masks: np.ndarray, measured: np.ndarray) -> dict[str, float]:
    """The linear datamodeling score over validation points; those without ranks are left out."""
    scores = evaluate.lds(weights, masks, measured)
    ranked = scores[np.isfinite(scores)]
    if not len(ranked):
        return {"points": 0}
    error = ranked.std(ddof=1) / np.sqrt(len(ranked)) if len(ranked) > 1 else 0.0
    return evaluate.summary(ranked) | {"points": len(ranked), "stderr": float(error)}


def _extremes(job: Job, at: int, weights: np.ndarray) -> dict[str, Any]:
    """The training points that help and harm a validation point's margin most, strongest first."""
    order, y = np.argsort(weights), job.dataset.y_train

    def rows(which: np.ndarray) -> list[dict[str, Any]]:
        return [{"index": int(i), "label": int(y[i]), "effect": float(weights[i])} for i in which]

    shown = job.settings.shown
    return {
        "index": at,
        "label": int(job.dataset.y_val[at]),
        "helpful": rows(order[::-1][:shown]),
        "harmful": rows(order[:shown]),
    }
