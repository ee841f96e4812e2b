"""Targets for the matching methods: outputs of retrained models, real or predicted."""

import dataclasses
import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import attribution
from jaxunlearn.attribution import datamodels, members, trak
from jaxunlearn.comparison.models import Job, ModelsJob, all_logits, keys_of, train_phase
from jaxunlearn.comparison.settings import AttributeSettings, Estimates
from jaxunlearn.core import checks, keys
from jaxunlearn.core import mesh as meshes
from jaxunlearn.core.checkpoint import BlockStore
from jaxunlearn.core.model import Model
from jaxunlearn.core.run_folder import Progress, ticking
from jaxunlearn.unlearn import Problem
from jaxunlearn.unlearn.method_settings import Training
from jaxunlearn.unlearn.scratch import train


def check(estimates: Estimates, needs: set[str], n: int, n_models: int, training: Training) -> None:
    """Raises a ValueError for estimates that cannot be made, before anything is trained."""
    if "oracle_logits" in needs:
        checks.at_least("estimates.oracles", estimates.oracles, 0)
    if "effect" not in needs:
        return
    if estimates.attribution not in ("ridge", "lasso", "difference", "trak"):
        raise ValueError(
            f"estimates.attribution is {estimates.attribution!r}; it must be ridge, lasso, "
            "difference or trak"
        )
    if estimates.attribution == "trak":
        if not 1 <= estimates.checkpoints <= n_models:
            raise ValueError(
                f"estimates.checkpoints is {estimates.checkpoints}; 1 to n_models, {n_models}, fit"
            )
        if estimates.features < 1 or not 0 < estimates.l2 < np.inf:
            raise ValueError(
                f"estimates.features is {estimates.features} and estimates.l2 is {estimates.l2}; "
                "at least 1 and a positive number are needed"
            )
        return
    check_members(estimates.members, estimates.subset_fraction, n, training, "estimates.")


def check_members(
    n_members: int, subset_fraction: float, n: int, training: Training, prefix: str = ""
) -> None:
    """Raises a ValueError for members that cannot be trained; `prefix` is of settings' names."""
    if n_members < 10:
        raise ValueError(f"{prefix}members is {n_members}; at least 10 are needed")
    size = int(subset_fraction * n + 1e-9) if 0 < subset_fraction < 1 else 0
    if not 0 < size < n:
        raise ValueError(
            f"{prefix}subset_fraction is {subset_fraction}: a part of the {n} points is needed, "
            f"not {size}"
        )
    if size < training.batch_size:
        raise ValueError(
            f"{prefix}subset_fraction is {subset_fraction}: subsets of {size} of {n} points, fewer "
            f"than the batch_size {training.batch_size} of the training"
        )


def check_space(out: str | os.PathLike, n_members: int, n_points: int, n_classes: int) -> None:
    """Raises a ValueError if the members' logits do not fit the disk."""
    path = Path(out).absolute()
    if (path / "lanes" / "members").exists():  # a resumed run has taken its space
        return
    while not path.exists():
        path = path.parent
    needed, free = n_members * n_points * n_classes * 4, shutil.disk_usage(path).free
    if needed > free:
        raise ValueError(
            f"members is {n_members}: their logits on {n_points} points take {needed / 2**30:.1f} "
            f"GiB, but {str(path)!r} has {free / 2**30:.1f} GiB left; fewer members or points, or "
            "`attribution.members.Moments` in a program of your own, need less"
        )


@dataclasses.dataclass(frozen=True)
class Estimated:
    """What methods get that need it.

    Attributes:
        problem: the job's, with what all models share.
        by_model: fields of the problem that differ by model, leading axis the models.
        gradients: that each field took, by name.
    """

    problem: Problem
    by_model: dict[str, np.ndarray]
    gradients: dict[str, int]


def estimate(job: Job, full: dict[str, Any], progress: Progress) -> Estimated:
    """Trains and computes what the job's methods need."""
    problem, by_model, gradients = job.problem, {}, {}
    if "oracle_logits" in job.needs:
        store, n = job.folder.lanes("targets"), job.settings.estimates.oracles
        n_oracles = n or job.settings.n_models
        targets = train_phase(job, "targets", problem.retain, store, progress, n_oracles)
        if n:
            problem = dataclasses.replace(problem, oracle_logits=targets["logits"].mean(0))
        else:
            by_model["oracle_logits"] = targets["logits"]
        gradients["oracle_logits"] = int(targets["n_gradients"].sum())
    if "effect" in job.needs:
        effect, gradients["effect"] = _effect(job, full, progress)
        problem = dataclasses.replace(problem, effect=effect)
    return Estimated(problem, by_model, gradients)


def _effect(job: Job, full: dict[str, Any], progress: Progress) -> tuple[np.ndarray, int]:
    """What the forget set adds to all logits, [n + m, K], kept in the folder once it is known."""
    store = job.folder.lanes("effect")
    if 0 not in store:
        forget = np.asarray(job.problem.forget)
        estimates, sink = job.settings.estimates, None
        if estimates.attribution != "trak":
            part = estimates.subset_fraction
            sink = train_members(job, "members", estimates.members, part, progress)
        with meshes.together():
            if meshes.is_first():
                if sink is None:
                    effect = _of_gradients(job, full, forget, progress)
                else:
                    effect = _of_members(job, sink, forget, progress)
                effect = effect.reshape(-1, job.problem.n_classes).astype(np.float32)
                store.write(0, {"effect": effect})
    return store.read(0)["effect"], _n_gradients(job)


def _n_gradients(job: Job) -> int:
    """Gradients that an estimate of the effect takes, full models apart."""
    estimates, training = job.settings.estimates, job.settings.training
    n, m = len(job.dataset.x_train), len(job.dataset.x_val)
    if estimates.attribution == "trak":  # the margin of the training points, all logits of all
        return estimates.checkpoints * (n + job.problem.n_classes * (n + m))
    batches = int(estimates.subset_fraction * n + 1e-9) // training.batch_size
    return estimates.members * training.epochs * batches * training.batch_size


def train_members(
    job: ModelsJob[Any],
    phase: str,
    n_members: int,
    subset_fraction: float,
    progress: Progress,
    first: int = 0,
) -> members.Outputs:
    """Trains a model on each of M random subsets; stores its logits on all points, [M, n + m, K].

    Subsets and keys follow from the seed and a member's number; they and the store do not depend on
    a forget set.

    Args:
        job: a comparison or an attribution; members are trained as its full models are.
        phase: name of the phase and of the store's folder.
        n_members: M.
        subset_fraction: the part of the training set that each is trained on.
        progress: called as members finish.
        first: number of the first one, among all members of that seed.
    """
    settings, problem, x_val = job.settings, job.problem, job.dataset.x_val
    key, n_all = keys.fold(jax.random.key(settings.seed), "masks"), first + n_members
    sink = members.Outputs(
        job.folder.path / "lanes" / phase,
        attribution.masks.exact(key, n_all, len(problem.x), subset_fraction)[first:],
        keys_of(settings.seed, "members", n_all)[first:],
        (len(problem.x) + len(x_val), problem.n_classes),
        width=min(settings.lane_width, n_members),
        record={
            "data_sha256": job.record["settings"]["data_sha256"],
            "model": [settings.model, settings.multiply_adds],
            "training": dataclasses.asdict(settings.training),
        },
    )
    # The forget set is no part of it, so that the program is that of every forget set.
    members.run(
        _member(job.model, settings.training, problem.n_classes),
        {"x": problem.x, "y": problem.y, "x_val": jnp.asarray(x_val)},
        sink,
        mode=job.mode,
        mesh=job.mesh,
        callback=ticking(job.folder, phase, n_members, progress),
    )
    return sink


@functools.lru_cache(maxsize=64)  # the same model and settings are the same program
def _member(model: Model, training: Training, n_classes: int) -> Callable:
    def one(shared, rows, key):
        problem = Problem(shared["x"], shared["y"], None, None, n_classes)
        result = train(model, problem, rows, key, **vars(training))
        return all_logits(model, {"problem": problem, "x_val": shared["x_val"]}, result)

    return one


def _of_members(job: Job, sink: members.Outputs, forget: np.ndarray, progress) -> np.ndarray:
    outputs = sink.outputs.reshape(len(sink.masks), -1)
    return datamodels.effect(
        sink.masks,
        outputs,
        forget,
        method=job.settings.estimates.attribution,  # type: ignore[arg-type]
        mesh=job.mesh if jax.process_count() == 1 else None,
        callback=lambda done: progress("effect", done, outputs.shape[1]),
    )


def _of_gradients(job: Job, full: dict[str, Any], forget: np.ndarray, progress) -> np.ndarray:
    estimates, data = job.settings.estimates, job.dataset
    x, y = (np.concatenate(a) for a in ((data.x_train, data.x_val), (data.y_train, data.y_val)))
    callback = lambda done: progress("effect", done, estimates.checkpoints)  # noqa: E731
    return by_trak(trak.effect, job, full, estimates, (x, y), forget, callback=callback)


def by_trak(
    function: Callable[..., np.ndarray],
    job: ModelsJob[Any],
    full: dict[str, Any],
    settings: Estimates | AttributeSettings,
    *points: Any,
    **options: Any,
) -> np.ndarray:
    """`trak.attribute` or `trak.effect` from the first full models, resumable in the job's folder.

    Args:
        function: one of these two.
        job: a comparison or an attribution.
        full: parameters and statistics of full models, leading axis the models.
        settings: their `checkpoints`, `features` and `l2` are read.
        *points: targets, and for `effect` the forget set.
        **options: passed on.
    """
    weights, data = (full["params"], full.get("stats", {})), job.dataset
    return function(
        job.model,
        [
            jax.tree.map(lambda a, i=i: jnp.asarray(a[i]), weights)
            for i in range(settings.checkpoints)
        ],
        (data.x_train, data.y_train),
        *points,
        keys.fold(jax.random.key(job.settings.seed), "trak"),
        l2=settings.l2,
        dim=settings.features,
        stores=lambda name: BlockStore(job.folder.path / "lanes" / "trak" / name),
        **options,
    )
