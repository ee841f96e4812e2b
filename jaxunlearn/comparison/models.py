"""A comparison under way: its models, computed in lanes, phase by phase."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import data as datasets
from jaxunlearn.comparison.plugins import Plugin
from jaxunlearn.comparison.settings import AttributeSettings, Settings
from jaxunlearn.core import ensemble, finite, keys, mesh, study
from jaxunlearn.core.checkpoint import BlockStore
from jaxunlearn.core.checks import NonFiniteError
from jaxunlearn.core.model import Model, predict
from jaxunlearn.core.run_folder import Progress, ticking
from jaxunlearn.data import Dataset
from jaxunlearn.unlearn import Problem, Unlearned, baselines
from jaxunlearn.unlearn.method_settings import Training
from jaxunlearn.unlearn.methods import bind
from jaxunlearn.unlearn.scratch import train

# {name: (method, its settings)}, see `unlearn.METHODS`.
Methods: TypeAlias = Mapping[str, tuple[Callable[..., Unlearned], Any]]


_MOST_LOGIT = 1e6  # models that answer with more have diverged, though no number overflowed
_ADVICE = "a smaller learning rate, or a network with BatchNorm, may help"

S = TypeVar("S", bound=Settings | AttributeSettings)


def with_data(settings: S, data_dir: Path | None) -> tuple[S, Dataset]:
    """The data of a study, and its settings with what the data decides: size and numbers.

    Raises:
        ValueError: as in `data.load`.
    """
    dataset = datasets.load(
        settings.data,
        settings.n_train,
        settings.n_val,
        size=settings.size,
        default_size=datasets.DEFAULT_SIZE,
        data_dir=data_dir,
    )
    n, m = len(dataset.x_train), len(dataset.x_val)
    return dataclasses.replace(settings, size=dataset.size, n_train=n, n_val=m), dataset


@dataclasses.dataclass(frozen=True)
class ModelsJob(study.Job[S]):
    """Work on many models of one network and one data set.

    Attributes:
        dataset: the data set.
        problem: its training set on the device, and what is to be forgotten.
        model: the network.
    """

    dataset: Dataset
    problem: Problem
    model: Model

    @property
    def mode(self) -> ensemble.Mode:
        """How the models of a lane are computed."""
        return ensemble.pick_mode(self.settings.model != "mlp")


@dataclasses.dataclass(frozen=True)
class Job(ModelsJob[Settings]):
    """A comparison whose settings have been checked and whose folder is ready; see `prepare`.

    Attributes:
        methods: what runs.
        plugins: those of the methods that come from files.
        saved: methods whose weights are saved.
        is_own: whether the network is one of the caller's own.
    """

    methods: Methods
    plugins: tuple[Plugin, ...] = ()
    saved: tuple[str, ...] = ()
    is_own: bool = False

    @property
    def needs(self) -> set[str]:
        """The fields of the problem that some method needs to be estimated."""
        return {config.needs for _, config in self.methods.values() if hasattr(config, "needs")}

    @property
    def phases(self) -> dict[str, float]:
        """The phases in their order, with their expected shares of the work."""
        estimates, n_models = self.settings.estimates, self.settings.n_models
        training = 3.0  # from scratch takes about three times as long as unlearning a model
        phases = {"full": training, "oracle": training}
        if "oracle_logits" in self.needs:
            phases["targets"] = training * (estimates.oracles or n_models) / n_models
        if "effect" in self.needs:
            if estimates.attribution != "trak":
                phases["members"] = (
                    training * estimates.subset_fraction * estimates.members / n_models
                )
            phases["effect"] = 1.0
        phases |= {name: training if name == "retrain" else 1.0 for name in self.methods}
        return phases | {"evaluation": 1.0}


@dataclasses.dataclass(frozen=True)
class Phase:
    """What computes the models of a phase.

    Attributes:
        job: the job.
        one: a function of one model, `one(shared, member)`.
        members: what differs by model, leading axis the models.
        shared: what all models read.
        width: models of a lane.
    """

    job: ModelsJob[Any]
    one: Callable
    members: Any
    shared: dict[str, Any]
    width: int

    def run(self, name: str, store: BlockStore, progress: Progress) -> dict[str, Any]:
        """Computes the models in lanes."""
        n_models = len(jax.tree.leaves(self.members)[0])
        return ensemble.run(
            *self._inputs,
            **self._how,
            store=store,
            check=functools.partial(_check_finite, name),
            callback=ticking(self.job.folder, name, n_models, progress),
        )

    def compile(self) -> None:
        """Compiles the program that `run` needs, which then finds it."""
        ensemble.compile_ahead(*self._inputs, **self._how)

    @property
    def _inputs(self) -> tuple[Callable, Any, Any]:
        return self.one, jax.tree.map(jnp.asarray, self.shared), self.members

    @property
    def _how(self) -> dict[str, Any]:
        return {"width": self.width, "mode": self.job.mode, "mesh": self.job.mesh}


def training(job: Job, phase: str, indices: Any, n_models: int) -> Phase:
    """The phase that trains models on some rows, to parameters, statistics and logits."""
    one = training_of_one(job.model, job.settings.training)
    members = keys_of(job.settings.seed, phase, n_models)
    return Phase(job, one, members, _read(job, indices=indices), _width(job))


def train_phase(
    job: Job, phase: str, indices: Any, store: BlockStore, progress: Progress, n_models: int
) -> dict[str, Any]:
    """Trains the models of a phase on some rows; returns parameters, statistics and logits."""
    return training(job, phase, indices, n_models).run(phase, store, progress)


def forgetting(
    job: Job,
    name: str,
    full: dict[str, Any],
    problem: Problem | None = None,
    by_model: dict[str, np.ndarray] | None = None,
) -> Phase:
    """The phase in which full models forget, see `forget_phase`."""
    method, settings = job.methods[name]
    seeds = keys_of(job.settings.seed, name.partition("@")[0], job.settings.n_models)
    members = (full["params"], full.get("stats", {}), seeds, by_model or {})
    one = _forgetting_of_one(job.model, method, settings, name in job.saved)
    return Phase(job, one, members, _read(job, problem=problem or job.problem), _width(job))


def forget_phase(
    job: Job,
    name: str,
    full: dict[str, Any],
    progress: Progress,
    *,
    problem: Problem | None = None,
    by_model: dict[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Lets all full models forget; returns logits, the gradients it took, and weights to be saved.

    Args:
        job: the job.
        name: of a method.
        full: parameters and statistics of the full models.
        progress: called as models finish.
        problem: with estimates, for a method that needs them; by default the job's.
        by_model: fields of the problem that differ by model, leading axis the models.
    """
    n_models = job.settings.n_models
    store = job.folder.method_lanes(name, recorded(job.methods, job.plugins)[name])
    if job.methods[name][0] is baselines.retrain:  # the oracles' program, which is compiled already
        return train_phase(job, name, job.problem.retain, store, progress, n_models)
    if name in job.saved:
        _drop_without_weights(store, -(-n_models // _width(job)))
    return forgetting(job, name, full, problem, by_model).run(name, store, progress)


def recorded(methods: Methods, plugins: Sequence[Plugin]) -> dict[str, dict[str, Any]]:
    """The settings of methods by name, with the files that methods come from; JSON-like."""
    origins = {plugin.name: {"plugin": plugin.origin} for plugin in plugins}
    return {
        name: dataclasses.asdict(config) | origins.get(name, {})
        for name, (_, config) in methods.items()
    }


def rows_of(dataset: Dataset) -> dict[str, Any]:
    """What rows and classes are in a folder of images, for results; empty for other data."""
    if not dataset.files_train:
        return {}
    files = {"train": list(dataset.files_train), "val": list(dataset.files_val)}
    return {"files": files, "classes": list(dataset.classes)}


def _drop_without_weights(store: BlockStore, n_lanes: int) -> None:
    """Removes the lanes of a run whose weights were not wanted: they are computed again."""
    with mesh.together():
        for lane in range(n_lanes) if mesh.is_first() else ():
            if lane in store and "params" not in store.read(lane):
                store.file(lane).unlink()


# The same model and settings give the same function, so that a second comparison in this process
# finds its programs compiled.
@functools.lru_cache(maxsize=64)
def training_of_one(model: Model, training: Training) -> Callable:
    """A function of one model trained from scratch: its weights, logits and losses.

    It reads `problem`, `indices` (the rows to train on) and `x_val`.
    """

    def one(shared, key):
        result = train(model, shared["problem"], shared["indices"], key, **vars(training))
        weights = {"params": result.params, "stats": result.stats}
        return weights | _outputs(model, shared, result)

    return one


@functools.lru_cache(maxsize=64)
def _forgetting_of_one(
    model: Model, method: Callable, settings: Any, with_weights: bool
) -> Callable:
    forget = bind(method, settings)

    def one(shared, member):
        params, stats, key, fields = member
        problem = dataclasses.replace(shared["problem"], **fields)
        result = forget(model, params, stats, problem, key)
        weights = {"params": result.params, "stats": result.stats} if with_weights else {}
        return weights | _outputs(model, shared, result)

    return one


def _outputs(model: Model, shared: dict[str, Any], result: Unlearned) -> dict[str, jax.Array]:
    """Logits of all points, train then validation, in eval mode."""
    logits = all_logits(model, shared, result)
    if result.correction is not None:
        logits = logits + result.correction
    n_gradients = jnp.asarray(result.n_gradients, jnp.float32)
    return {"logits": logits, "losses": result.losses, "n_gradients": n_gradients}


def keys_of(seed: int, phase: str, n_models: int) -> jax.Array:
    """A key for each model of a phase; more models have the same ones first."""
    root = keys.fold(jax.random.key(seed), "model", phase)
    return jax.vmap(lambda i: keys.fold(root, i))(jnp.arange(n_models))


def _width(job: Job) -> int:
    """Fewer models than fill a lane are padded: their program is that of the other phases."""
    return min(job.settings.lane_width, job.settings.n_models)


def _read(job: ModelsJob[Any], **more: Any) -> dict[str, Any]:
    """What all models of a phase read: the data, and more by name."""
    return {"problem": job.problem, "x_val": job.dataset.x_val} | more


def run_lanes(
    job: ModelsJob[Any],
    phase: str,
    one: Callable,
    members: Any,
    progress: Progress,
    width: int,
    store: BlockStore,
    **shared: Any,
) -> dict[str, Any]:
    """Computes the models of a phase in lanes; `shared` is what `one` reads beside the data."""
    return Phase(job, one, members, _read(job, **shared), width).run(phase, store, progress)


def all_logits(model: Model, shared: dict[str, Any], result: Unlearned) -> jax.Array:
    """What a model's weights give on all points, train then validation, [n + m, n_classes]."""
    x = jnp.concatenate([shared["problem"].x, shared["x_val"]])
    return predict(model, result.params, result.stats, x)


def _check_finite(phase: str, lane: dict[str, np.ndarray], first: int) -> None:
    """Raises a NonFiniteError for a model of a lane whose loss or outputs are not finite."""
    losses = lane["losses"]
    try:
        finite.check_members(lambda i: f"{phase}: the loss of member {i}", losses, first)
    except NonFiniteError as error:
        raise NonFiniteError(f"{error}; {_ADVICE}") from error
    for member, logits in enumerate(lane.get("logits", ()), first):
        most = np.abs(logits).max()
        if not most < _MOST_LOGIT:
            how = "not finite" if not np.isfinite(most) else f"as large as {most:.2g}"
            raise NonFiniteError(
                f"{phase}: member {member} gives outputs that are {how} after step "
                f"{losses.shape[1]}, its last; {_ADVICE}"
            )
