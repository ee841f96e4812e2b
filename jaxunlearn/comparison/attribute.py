"""The attribution job: which training points a model's answers on validation points depend on.

Members are trained on random subsets, datamodels are regressed on the margins that they give, and
judged on held-out members; TRAK, which needs a few full models only, stands beside them.
"""

import dataclasses
import os
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxunlearn import data as datasets
from jaxunlearn import evaluate
from jaxunlearn.attribution import datamodels, members, trak
from jaxunlearn.comparison import estimates
from jaxunlearn.comparison.models import Progress, check_finite, keys_of, ticking, training_of_one
from jaxunlearn.comparison.settings import check_run
from jaxunlearn.comparison.study import build_model
from jaxunlearn.core import ensemble, keys, losses, records
from jaxunlearn.core import mesh as meshes
from jaxunlearn.core.checkpoint import BlockStore
from jaxunlearn.core.model import Model
from jaxunlearn.core.run_folder import RunFolder, run_record
from jaxunlearn.data import Dataset
from jaxunlearn.unlearn import Problem
from jaxunlearn.unlearn.methods import check_settings
from jaxunlearn.unlearn.scratch import Training


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is attributed, and how.

    Attributes:
        data: the data set, see the settings of a comparison, as `model` to `n_val`.
        model: the network.
        budget: multiply-adds per image of a "small_cnn".
        n_train: training examples.
        n_val: validation examples; their margins are what is attributed.
        members: models on random subsets that datamodels are regressed on.
        held_out: further ones, which only judge.
        alpha: the fraction of the training set that each of them is trained on.
        method: the regression, see `attribution.datamodels`.
        checkpoints: models on all data whose gradients TRAK uses; 0 leaves TRAK out.
        features: of TRAK, numbers that a gradient is projected to.
        l2: of TRAK, its penalty, in units of the mean diagonal entry.
        targets: validation examples that are drawn with their most helpful and harmful training
            examples.
        shown: how many of these on each side.
        lane_width: models computed together; part of what decides the bits.
        seed: of all models.
        training: how all models are trained.
    """

    data: str = "digits"
    model: str = "mlp"
    budget: int = 1_000_000
    n_train: int | None = None
    n_val: int | None = None
    members: int = 2000
    held_out: int = 100
    alpha: float = 0.5
    method: Literal["ridge", "lasso", "difference"] = "ridge"
    checkpoints: int = 5
    features: int = 512
    l2: float = 0.1
    targets: tuple[int, ...] = (0, 1, 2, 3, 4)
    shown: int = 5
    lane_width: int = 25
    seed: int = 0
    training: Training = Training()


@dataclasses.dataclass(frozen=True)
class Job:
    """Work whose settings have been checked and whose folder is ready; see `prepare`."""

    settings: Settings
    dataset: Dataset
    model: Model
    record: dict[str, Any]
    folder: RunFolder
    mesh: Mesh

    @property
    def problem(self) -> Problem:
        """The training set; nothing is to be forgotten."""
        x, y = jnp.asarray(self.dataset.x_train), jnp.asarray(self.dataset.y_train)
        return Problem(x, y, None, None, self.dataset.n_classes)

    @property
    def phases(self) -> dict[str, float]:
        """The phases in their order, with their expected shares of the work."""
        own = self.settings
        phases = {"members": own.alpha * own.members, "held_out": own.alpha * own.held_out}
        if own.checkpoints:
            phases |= {"checkpoints": own.checkpoints, "trak": own.checkpoints}
        return phases | {"regression": 0.05 * own.members}


def run(
    settings: Settings,
    *,
    out: str | os.PathLike,
    resume: bool = False,
    mesh: Mesh | None = None,
    progress: Progress = lambda phase, done, total: None,
    data_dir: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """Runs the job; writes `results.json`, `datamodel.npz` and, with TRAK, `trak.npz`.

    `datamodel.npz` holds `weights` [n, m], `intercept` [m] and `penalty` [m] of the validation
    points' margins; `trak.npz` holds `scores` [n, m]. A run that was stopped goes on from its
    finished models to the same bits.

    Args:
        settings: what is attributed.
        out: the output folder: new or empty, or (with `resume`) that of the same run.
        resume: whether to go on with the run in `out`, if there is one.
        mesh: devices with an axis `models`; by default one.
        progress: called as models finish.
        data_dir: prepared data sets, see `data.load`.

    Returns:
        The contents of `results.json`: `lds` by kind of attribution, summarised over validation
        points; `targets` with the most helpful and harmful training points; seconds by phase.

    Raises:
        ValueError: bad settings or a folder that does not fit; nothing has been written then.
        NonFiniteError: a member diverged (it is named); those before it are kept.
    """
    job = prepare(settings, out=out, resume=resume, mesh=mesh, data_dir=data_dir)
    return execute(job, progress=progress)


def prepare(
    settings: Settings,
    *,
    out: str | os.PathLike,
    resume: bool = False,
    mesh: Mesh | None = None,
    data_dir: str | os.PathLike | None = None,
) -> Job:
    """Checks everything that can be wrong before work starts; arguments and errors as for `run`."""
    with meshes.together():
        _check(settings)
        dataset = datasets.load(settings.data, settings.n_train, settings.n_val, data_dir=data_dir)
        n, m = len(dataset.x_train), len(dataset.x_val)
        settings = dataclasses.replace(settings, n_train=n, n_val=m)
        estimates.check_members(settings.members, settings.alpha, n, settings.training)
        n_members = settings.members + settings.held_out
        estimates.check_space(out, n_members, n + m, dataset.n_classes)
        outside = [at for at in settings.targets if not 0 <= at < m]
        if outside:
            raise ValueError(f"targets has {outside[0]}; there are validation points 0 to {m - 1}")
        if not 1 <= settings.shown <= n // 2:
            raise ValueError(f"shown is {settings.shown}; it must lie in 1 to {n // 2}")
        model = build_model(settings.model, settings.budget, dataset)
        # What is only read off finished models may change when the run is resumed.
        record = run_record(settings, data=dataset.arrays)
        for name in ("targets", "shown", "method"):
            del record["settings"][name]
        folder = RunFolder(out, record, {}, resume)
    with meshes.together():
        folder.begin()
    return Job(settings, dataset, model, record, folder, mesh or meshes.make({"models": 1}))


def _check(settings: Settings) -> None:
    check_settings("training", settings.training)
    check_run(settings.seed, settings.lane_width)
    for name, least in {"held_out": 3, "checkpoints": 0, "features": 1}.items():
        if getattr(settings, name) < least:
            raise ValueError(f"{name} is {getattr(settings, name)}; it must be at least {least}")
    if not 0 < settings.l2 < np.inf:
        raise ValueError(f"l2 is {settings.l2}; it must be finite and positive")
    if settings.method not in ("ridge", "lasso", "difference"):
        raise ValueError(f"method is {settings.method!r}; it must be ridge, lasso or difference")
    if not settings.targets:
        raise ValueError("targets is empty; at least one validation point is needed")


def execute(job: Job, *, progress: Progress = lambda phase, done, total: None) -> dict[str, Any]:
    """Does the work of a prepared job; see `run`."""
    fitted = _members(job, "members", job.settings.members, progress)
    judges = _members(job, "held_out", job.settings.held_out, progress)
    full = _checkpoints(job, progress) if job.settings.checkpoints else None
    with meshes.together():
        if meshes.is_first():
            _conclude(job, fitted, judges, full, progress)
    return records.read(job.folder.path / "results.json")


def _conclude(
    job: Job,
    fitted: members.Outputs,
    judges: members.Outputs,
    full: dict[str, Any] | None,
    progress: Progress,
) -> None:
    """From all models to the results, in one process."""
    own = job.settings
    masks, margins = _margins(job, fitted)
    found = {} if full is None else {"trak": _trak(job, full, progress)}
    progress("regression", 0, 1)
    alone = job.mesh if jax.process_count() == 1 else None
    datamodel = datamodels.fit(masks, margins, method=own.method, mesh=alone)
    held_out = _margins(job, judges)
    kinds = {"datamodel": datamodel.weights} | found
    job.folder.write_arrays("datamodel.npz", vars(datamodel))
    if found:
        job.folder.write_arrays("trak.npz", {"scores": found["trak"]})
    results = {
        "schema": 1,
        "lds": {name: _lds(weights, *held_out) for name, weights in kinds.items()},
        "targets": [_extremes(job, at, datamodel.weights[:, at]) for at in own.targets],
        "seconds": job.folder.seconds,
        **job.record,
    }
    results["settings"] = results["settings"] | {
        name: getattr(own, name) for name in ("targets", "shown", "method")
    }
    job.folder.write_json("results.json", results)
    progress("regression", 1, 1)


def _members(job: Job, phase: str, n_members: int, progress: Progress) -> members.Outputs:
    """Trains the members of a phase; their logits on all points."""
    own, data = job.settings, job.dataset
    n, offset = len(data.x_train), {"members": 0, "held_out": own.members}[phase]
    return estimates.train_members(
        job.folder.path / "lanes" / phase,
        job.model,
        own.training,
        job.problem,
        data.x_val,
        estimates.member_masks(own.seed, offset + n_members, n, own.alpha)[offset:],
        seed=own.seed,
        first=offset,
        width=own.lane_width,
        record=estimates.member_record(own, job.record),
        mode=ensemble.pick_mode(own.model != "mlp"),
        mesh=job.mesh,
        callback=ticking(job.folder, phase, n_members, progress),
    )


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
    own, data = job.settings, job.dataset

    return ensemble.run(
        training_of_one(job.model, own.training),
        {
            "problem": job.problem,
            "x_val": jnp.asarray(data.x_val),
            "indices": jnp.arange(len(data.x_train)),
        },
        keys_of(own.seed, "full", own.checkpoints),
        width=min(own.lane_width, own.checkpoints),
        mode=ensemble.pick_mode(own.model != "mlp"),
        mesh=job.mesh,
        store=job.folder.lanes("checkpoints"),
        check=lambda lane, first: check_finite("checkpoints", lane, first),
        callback=ticking(job.folder, "checkpoints", own.checkpoints, progress),
    )


def _trak(job: Job, full: dict[str, Any], progress: Progress) -> np.ndarray:
    """Scores of the training points on the margins of the validation points, [n, m]."""
    own, data = job.settings, job.dataset
    progress("trak", 0, own.checkpoints)
    checkpoints = [
        jax.tree.map(lambda a, i=i: jnp.asarray(a[i]), (full["params"], full.get("stats", {})))
        for i in range(own.checkpoints)
    ]
    scores = trak.attribute(
        job.model,
        checkpoints,
        (data.x_train, data.y_train),
        (data.x_val, data.y_val),
        keys.fold(jax.random.key(own.seed), "trak"),
        l2=own.l2,
        dim=own.features,
        stores=lambda name: BlockStore(job.folder.path / "lanes" / "trak" / name),
    )
    progress("trak", own.checkpoints, own.checkpoints)
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
