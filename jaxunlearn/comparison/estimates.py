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
from jaxunlearn.comparison.models import Job, Progress, all_logits, keys_of, ticking, train_phase
from jaxunlearn.comparison.settings import Estimates
from jaxunlearn.core import keys
from jaxunlearn.core import mesh as meshes
from jaxunlearn.core.checkpoint import BlockStore
from jaxunlearn.core.model import Model
from jaxunlearn.unlearn import Problem
from jaxunlearn.unlearn.method_settings import Training
from jaxunlearn.unlearn.scratch import train


def check(estimates: Estimates, needs: set[str], n: int, n_models: int, training: Training) -> None:
    """Raises a ValueError for estimates that cannot be made, before anything is trained."""
    if "oracle_logits" in needs and estimates.oracles < 0:
        raise ValueError(f"estimates.oracles is {estimates.oracles}; it must be at least 0")
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
        uses_trak = job.settings.estimates.attribution == "trak"
        sink = None if uses_trak else _train_members(job, progress)
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


def _train_members(job: Job, progress: Progress) -> members.Outputs:
    settings, estimates = job.settings, job.settings.estimates
    return train_members(
        job.folder.path / "lanes" / "members",
        job.model,
        settings.training,
        job.problem,
        job.dataset.x_val,
        member_masks(
            settings.seed,
            estimates.members,
            len(job.dataset.x_train),
            estimates.subset_fraction,
        ),
        seed=settings.seed,
        width=settings.lane_width,
        record=member_record(settings, job.record),
        mode=job.mode,
        mesh=job.mesh,
        callback=ticking(job.folder, "members", estimates.members, progress),
    )


def member_masks(seed: int, n_members: int, n: int, subset_fraction: float) -> np.ndarray:
    """The subsets of a run's members, bool [M, n]; more members have the same ones first."""
    key = keys.fold(jax.random.key(seed), "masks")
    return attribution.masks.exact(key, n_members, n, subset_fraction)


def member_record(settings: Any, record: dict[str, Any]) -> dict[str, Any]:
    """What decides the outputs of a run's members beside their training, subsets and keys."""
    return {
        "data_sha256": record["settings"]["data_sha256"],
        "model": [settings.model, settings.multiply_adds],
    }


def train_members(
    path: Path,
    model: Model,
    training: Training,
    problem: Problem,
    x_val: Any,
    masks: np.ndarray,
    *,
    seed: int,
    first: int = 0,
    width: int,
    record: dict[str, Any],
    **how: Any,
) -> members.Outputs:
    """Trains a model on each subset and stores its logits on all points, [M, n + m, K].

    Args:
        path: the folder of the store; it does not depend on a forget set.
        model: the network.
        training: how members are trained: as full models are.
        problem: its training set is read.
        x_val: validation inputs.
        masks: bool [M, n].
        seed: of the members.
        first: number of the first one, among all members of that seed.
        width: members per lane.
        record: what else decides the outputs.
        **how: `mode`, `mesh` and `callback` of `members.run`.
    """
    shape = (len(problem.x) + len(x_val), problem.n_classes)
    record = record | {"training": dataclasses.asdict(training)}
    seeds = keys_of(seed, "members", first + len(masks))[first:]
    width = min(width, len(masks))
    sink = members.Outputs(path, masks, seeds, shape, width=width, record=record)
    # The forget set is no part of it, so that the program is that of every forget set.
    shared = {"x": problem.x, "y": problem.y, "x_val": jnp.asarray(x_val)}
    members.run(_member(model, training, problem.n_classes), shared, sink, **how)
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
    checkpoints = [
        jax.tree.map(lambda a, i=i: jnp.asarray(a[i]), (full["params"], full.get("stats", {})))
        for i in range(estimates.checkpoints)
    ]
    x, y = (np.concatenate(a) for a in ((data.x_train, data.x_val), (data.y_train, data.y_val)))
    return trak.effect(
        job.model,
        checkpoints,
        (data.x_train, data.y_train),
        (x, y),
        forget,
        keys.fold(jax.random.key(job.settings.seed), "trak"),
        l2=estimates.l2,
        dim=estimates.features,
        stores=lambda name: BlockStore(job.folder.path / "lanes" / "trak" / name),
        callback=lambda done: progress("effect", done, estimates.checkpoints),
    )
