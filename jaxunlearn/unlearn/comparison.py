"""The main job: many models forget by several methods, and retrained oracles judge them.

N full models are trained on all data and N reference oracles without the forget set. Every method
then starts from each full model; its N results are compared with the oracles, point by point, on
the forget set, the retain set and the validation set. `retrain` trains N more oracles: what exact
unlearning would score.
"""

import dataclasses
import functools
import json
import os
import platform
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import jaxunlearn
from jaxunlearn import data as datasets
from jaxunlearn import nn
from jaxunlearn.core import ensemble, keys, tree
from jaxunlearn.core import mesh as meshes
from jaxunlearn.core.checkpoint import BlockStore
from jaxunlearn.core.model import Model, predict
from jaxunlearn.data import Dataset, augment, forget_sets
from jaxunlearn.unlearn import baselines, report
from jaxunlearn.unlearn._problem import Problem, Unlearned
from jaxunlearn.unlearn._run_folder import Clock, RunFolder
from jaxunlearn.unlearn.methods import METHODS, bind, check_settings
from jaxunlearn.unlearn.training import Training, train


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is compared; together with the methods' own settings it decides every number.

    Attributes:
        data: the data set: "digits" is embedded; a prepared set of tensorflow_datasets such as
            "cifar10", an `.npz` file or a folder of images; see `data.load`.
        model: "mlp" (one hidden layer of 64), "cnn" (two 3x3 convolutions), "cnn_bn", the same with
            BatchNorm, "small_cnn" (the largest within `budget`), "resnet9", or "wrn-16-1" and other
            wide residual networks by depth and width. Images of integers are normalised by the
            training set's mean and deviation.
        budget: multiply-adds per image of a "small_cnn".
        n_train: training examples; by default 1,200 of "digits" and all of another set.
        n_val: validation examples; by default all.
        forget: "random", "class" (random within a class), "cluster" (an outlying example of a class
            and its nearest neighbours within it), "pc" (the top of the first principal component),
            or "file" (indices from a file).
        forget_size: size of the forget set, unless it comes from a file.
        forget_class: class of a "class" or "cluster" forget set.
        forget_file: `.npy` or text file of training indices, for "file".
        n_models: models a side, at least 2; below about 100 the noise of KLOM hides differences.
        lane_width: models computed together; part of what decides the bits.
        batch_shards: devices that share each batch (of those that they divide); part of what
            decides the bits.
        seed: of all models; data and forget set are the same for every seed.
        training: how full models and oracles are trained.
    """

    data: str = "digits"
    model: str = "mlp"
    budget: int = 1_000_000
    n_train: int | None = None
    n_val: int | None = None
    forget: Literal["random", "class", "cluster", "pc", "file"] = "cluster"
    forget_size: int = 30
    forget_class: int = 8
    forget_file: str | None = None
    n_models: int = 100
    lane_width: int = 25
    batch_shards: int = 1
    seed: int = 0
    training: Training = Training()


class NonFiniteError(ArithmeticError):
    """A loss or an output is NaN or infinite; says in which method, member and step."""


Methods = Mapping[str, tuple[Callable[..., Unlearned], Any]]
_PHASES = ("full", "oracle", "evaluation")  # these are no names of methods

# progress(phase, members finished, members in all); the last phase is the evaluation, of 1.
Progress = Callable[[str, int, int], None]


def run(
    settings: Settings,
    methods: Methods = METHODS,
    *,
    out: str | os.PathLike,
    resume: bool = False,
    mesh: Mesh | None = None,
    progress: Progress = lambda phase, done, total: None,
    data_dir: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """Runs the comparison and writes `results.json` and `margins.npz` into the output folder.

    Finished lanes of models lie in `out/lanes`; a run that was stopped in any way goes on from
    them to the same bits, on any number of devices. Of several processes, which share the folder,
    each calls this and the first one writes.

    Args:
        settings: what is compared.
        methods: `{name: (method, its settings)}`, see `methods.METHODS`; settings are frozen
            dataclasses. `none` and `retrain` are always among the results, and `retrain` takes the
            training of `settings`.
        out: the output folder: new or empty, or (with `resume`) that of the same run. A resumed run
            may have other methods, and other settings of methods without a finished lane.
        resume: whether to go on with the run in `out`, if there is one.
        mesh: devices, see `devices`; by default as few as the settings allow.
        progress: called as members finish.
        data_dir: prepared data sets, see `data.load`.

    Returns:
        The contents of `results.json`.

    Raises:
        ValueError: bad settings or a folder that does not fit; nothing has been written then.
        NonFiniteError: a method diverged; the methods before it are in `results.json`.
        ConnectionError: another process of the run died.
    """
    job = prepare(settings, methods, out=out, resume=resume, mesh=mesh, data_dir=data_dir)
    return execute(job, progress=progress)


@dataclasses.dataclass(frozen=True)
class Job:
    """A comparison whose settings have been checked and whose folder is ready; see `prepare`."""

    settings: Settings
    methods: dict[str, tuple[Callable[..., Unlearned], Any]]
    dataset: Dataset
    problem: Problem
    model: Model
    record: dict[str, Any]
    folder: RunFolder
    mesh: Mesh


def devices(settings: Settings, n_devices: int) -> Mesh:
    """A mesh for the settings: an axis `models`, and with `batch_shards` an axis `data`."""
    shards = settings.batch_shards
    if shards < 1 or n_devices % shards:
        raise ValueError(
            f"batch_shards is {shards}; it must be at least 1 and divide the {n_devices} devices"
        )
    return meshes.make({"models": n_devices // shards} | ({"data": shards} if shards > 1 else {}))


def prepare(
    settings: Settings,
    methods: Methods = METHODS,
    *,
    out: str | os.PathLike,
    resume: bool = False,
    mesh: Mesh | None = None,
    data_dir: str | os.PathLike | None = None,
) -> Job:
    """Checks everything that can be wrong before work starts; arguments and errors as for `run`."""
    with meshes.together():
        job = _checked(settings, methods, out, resume, mesh, data_dir)
    with meshes.together():
        job.folder.begin()
    return job


def _checked(
    settings: Settings,
    methods: Methods,
    out: str | os.PathLike,
    resume: bool,
    mesh: Mesh | None,
    data_dir: str | os.PathLike | None,
) -> Job:
    methods = {name: METHODS[name] for name in ("none", "retrain")} | dict(methods)
    methods["retrain"] = (METHODS["retrain"][0], settings.training)
    for name, (_, own) in methods.items():
        if not re.fullmatch(r"[A-Za-z0-9][\w.=+-]*", name) or name in _PHASES:
            raise ValueError(
                f"method name is {name!r}; it needs letters, digits and any of _ . = + -, and must "
                f"not be one of {', '.join(_PHASES)}"
            )
        if not dataclasses.is_dataclass(own) or type(own).__hash__ is None:
            raise ValueError(
                f"the settings of {name} are {own!r}; an instance of a frozen dataclass is needed"
            )
        check_settings("training" if name == "retrain" else name, own)
    if settings.n_models < 2:
        raise ValueError(f"n_models is {settings.n_models}; at least 2 are needed for a comparison")
    if not 0 <= settings.seed < 2**32:
        raise ValueError(f"seed is {settings.seed}; it must lie in 0 to 2**32 - 1")
    if settings.lane_width < 1:
        raise ValueError(f"lane_width is {settings.lane_width}; it must be at least 1")
    mesh = _checked_mesh(settings, mesh)
    dataset = datasets.load(settings.data, settings.n_train, settings.n_val, data_dir=data_dir)
    settings = dataclasses.replace(settings, n_train=len(dataset.x_train), n_val=len(dataset.x_val))
    forget = forget_set(settings, dataset)
    problem = Problem.of(dataset, forget)
    model = build_model(settings, dataset)
    _check_fits(model, settings, dataset)
    own = {name: dataclasses.asdict(config) for name, (_, config) in methods.items()}
    record = _record(settings, dataset, forget)
    folder = RunFolder(out, record, own, resume)
    return Job(settings, methods, dataset, problem, model, record, folder, mesh)


def _check_fits(model: Model, settings: Settings, dataset: Dataset) -> None:
    """Raises a ValueError for images that are too small for a network, before it is compiled."""
    image = jax.ShapeDtypeStruct((1, *dataset.x_train.shape[1:]), dataset.x_train.dtype)
    try:
        jax.eval_shape(lambda key, x: model.apply(*model.init(key), x), jax.random.key(0), image)
    except ValueError as error:
        shape = " x ".join(map(str, image.shape[1:]))
        raise ValueError(
            f"model is {settings.model!r}, which does not fit inputs of {shape}: {error}"
        ) from error


def _checked_mesh(settings: Settings, mesh: Mesh | None) -> Mesh:
    shards, batch = settings.batch_shards, settings.training.batch_size
    if shards < 1 or batch % shards:
        raise ValueError(
            f"batch_shards is {shards}; it must be at least 1 and divide the batch_size {batch} of "
            "the training"
        )
    if mesh is None:
        return devices(settings, shards * jax.process_count())
    if mesh.shape.get("models", 0) * shards != mesh.size or mesh.shape.get("data", 1) != shards:
        raise ValueError(
            f"mesh has the shape {dict(mesh.shape)}, but batch_shards is {shards}; axes models "
            f"and data, the latter of size {shards}, are needed"
        )
    return mesh


def execute(
    job: Job,
    *,
    progress: Progress = lambda phase, done, total: None,
) -> dict[str, Any]:
    """Does the work of a prepared job; see `run`."""
    store, everything = job.folder.lanes, np.arange(len(job.dataset.x_train))
    full = _train(job, "full", everything, store("full"), progress)
    oracle = _train(job, "oracle", job.problem.retain, store("oracle"), progress)
    judge = report.Judge(job.dataset, job.problem)
    forget = np.asarray(job.problem.forget)
    results = {
        "schema": 1,
        "n_models": job.settings.n_models,
        "methods": {},
        "floor": {},
        "forget_set": {
            "kind": job.settings.forget,
            "size": len(forget),
            "indices": forget.tolist(),
        },
        "settings": job.record["settings"]
        | {"methods": {name: dataclasses.asdict(own) for name, (_, own) in job.methods.items()}},
        "versions": job.record["versions"],
    }
    unlearned: dict[str, dict[str, np.ndarray]] = {}
    failure = None
    for name in job.methods:
        try:
            unlearned[name] = _forget(job, name, full, progress)
        except NonFiniteError as error:  # the methods before it are still reported
            failure = error
            results["failed"] = str(error)
            break
    if "retrain" in unlearned:
        progress("evaluation", 0, 1)
        margins = {
            name: judge.margins(outputs["logits"])
            for name, outputs in ({"oracle": oracle} | unlearned).items()
        }
        results |= judge.judge(margins, unlearned, job.folder.seconds)
        job.folder.write_json("results.json", results)
        job.folder.write_arrays("margins.npz", margins)
        progress("evaluation", 1, 1)
    if failure is not None:
        raise failure
    return json.loads(json.dumps(results))  # as it is in the file: its tuples are lists


def forget_set(settings: Settings, dataset: Dataset) -> np.ndarray:
    """The forget set of the settings, sorted training indices."""
    x, y, size = dataset.x_train, dataset.y_train, settings.forget_size
    if settings.forget_file is not None and settings.forget != "file":
        raise ValueError(
            f"forget_file is {settings.forget_file!r}, but forget is {settings.forget!r}; "
            "set forget to 'file'"
        )
    if settings.forget == "random":
        return forget_sets.random(len(x), size)
    if settings.forget == "class":
        return forget_sets.class_restricted(y, settings.forget_class, size)
    if settings.forget == "cluster":
        return forget_sets.cluster(x, y, settings.forget_class, size)
    if settings.forget == "pc":
        return forget_sets.principal_component(x, size)
    if settings.forget == "file":
        if settings.forget_file is None:
            raise ValueError("forget is 'file', but forget_file is not given")
        return forget_sets.from_file(settings.forget_file, len(x))
    raise ValueError(
        f"forget is {settings.forget!r}; it must be random, class, cluster, pc or file"
    )


def build_model(settings: Settings, dataset: Dataset) -> Model:
    """The network of the settings."""
    name, shape, n_classes = settings.model, dataset.x_train.shape[1:], dataset.n_classes
    residual = re.fullmatch(r"wrn-(\d+)-(\d+)", name)
    if name == "mlp":
        model = nn.mlp(int(np.prod(shape)), (64,), n_classes)
    elif name in ("cnn", "cnn_bn"):
        model = nn.cnn(shape, (16, 32), n_classes, batch_norm=name == "cnn_bn")
    elif name == "small_cnn":
        model = nn.small_cnn(shape, settings.budget, n_classes)
    elif name == "resnet9":
        model = nn.resnet9(n_classes, n_channels=shape[-1])
    elif residual:
        model = nn.wide_resnet(int(residual[1]), int(residual[2]), n_classes, n_channels=shape[-1])
    else:
        raise ValueError(
            f"model is {name!r}; it must be mlp, cnn, cnn_bn, small_cnn, resnet9 or wrn-DEPTH-WIDTH"
        )
    if dataset.x_train.dtype == np.uint8:
        model = nn.normalised(model, *augment.channel_statistics(dataset.x_train))
    return model


def _train(
    job: Job, phase: str, indices: Any, store: BlockStore, progress: Progress
) -> dict[str, Any]:
    """Trains all models of a phase on some rows; returns parameters, statistics and logits."""
    one = _training_of_one(job.model, job.settings.training)
    return _run_lanes(job, phase, one, _keys(job, phase), store, progress, indices=indices)


def _forget(job: Job, name: str, full: dict[str, Any], progress: Progress) -> dict[str, np.ndarray]:
    """Lets all full models forget; returns logits, and the gradients it took."""
    method, own = job.methods[name]
    store = job.folder.method_lanes(name, dataclasses.asdict(own))
    if method is baselines.retrain:  # the program of the oracles, which is compiled already
        return _train(job, name, job.problem.retain, store, progress)
    members = (full["params"], full.get("stats", {}), _keys(job, name))
    return _run_lanes(
        job, name, _forgetting_of_one(job.model, method, own), members, store, progress
    )


# The same model and settings give the same function, so that a second comparison in this process
# finds its programs compiled.
@functools.lru_cache(maxsize=64)
def _training_of_one(model: Model, training: Training) -> Callable:
    def one(shared, key):
        result = train(model, shared["problem"], shared["indices"], key, **vars(training))
        weights = {"params": result.params, "stats": result.stats}
        return weights | _outputs(model, shared, result)

    return one


@functools.lru_cache(maxsize=64)
def _forgetting_of_one(model: Model, method: Callable, own: Any) -> Callable:
    forget = bind(method, own)

    def one(shared, member):
        params, stats, key = member
        return _outputs(model, shared, forget(model, params, stats, shared["problem"], key))

    return one


def _outputs(model: Model, shared: dict[str, Any], result: Unlearned) -> dict[str, jax.Array]:
    """Logits of all points, train then validation, in eval mode."""
    x = jnp.concatenate([shared["problem"].x, shared["x_val"]])
    logits = predict(model, result.params, result.stats, x)
    if result.correction is not None:
        logits = logits + result.correction
    n_gradients = jnp.asarray(result.n_gradients, jnp.float32)
    return {"logits": logits, "losses": result.losses, "n_gradients": n_gradients}


def _keys(job: Job, phase: str) -> jax.Array:
    root = keys.fold(jax.random.key(job.settings.seed), "model", phase)
    return jax.vmap(lambda i: keys.fold(root, i))(jnp.arange(job.settings.n_models))


def _run_lanes(
    job: Job,
    phase: str,
    one: Callable,
    members: Any,
    store: BlockStore,
    progress: Progress,
    **shared: Any,
) -> dict[str, Any]:
    settings, clock = job.settings, Clock(job.folder, phase)

    def tick(done: int) -> None:
        clock.tick(done)
        progress(phase, done, settings.n_models)

    shared = {"problem": job.problem, "x_val": job.dataset.x_val} | shared
    return ensemble.run(
        one,
        jax.tree.map(jnp.asarray, shared),
        members,
        width=min(settings.lane_width, settings.n_models),
        mode=ensemble.pick_mode(settings.model != "mlp"),
        mesh=job.mesh,
        store=store,
        check=lambda lane, first: _check_finite(phase, lane, first),
        callback=tick,
    )


def _check_finite(phase: str, lane: dict[str, np.ndarray], first: int) -> None:
    for member, (losses, logits) in enumerate(zip(lane["losses"], lane["logits"], strict=True)):
        bad = np.flatnonzero(~np.isfinite(losses))
        if len(bad):
            raise NonFiniteError(
                f"{phase}: the loss of member {first + member} is {losses[bad[0]]} at step {bad[0]}"
                f" of {len(losses)}"
            )
        if not np.isfinite(logits).all():
            raise NonFiniteError(
                f"{phase}: member {first + member} gives outputs that are not finite after step "
                f"{len(losses)}, its last"
            )


def _record(settings: Settings, dataset: Dataset, forget: np.ndarray) -> dict[str, Any]:
    """What must be equal for a run to go on: settings, data and versions.

    The methods' own settings are recorded with each method's lanes, so that methods can be added,
    left out or, as long as they have no finished lane, changed.
    """
    arrays = [dataset.x_train, dataset.y_train, dataset.x_val, dataset.y_val]
    return {
        "settings": {
            **dataclasses.asdict(settings),
            "data_sha256": tree.digest(arrays),
            "forget_sha256": tree.digest(forget),
        },
        "versions": {
            "jaxunlearn": jaxunlearn.__version__,
            "jax": jax.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "backend": jax.default_backend(),
            "device": jax.devices()[0].device_kind,
        },
    }
