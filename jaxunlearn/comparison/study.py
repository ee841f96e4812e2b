"""The main job: many models forget by several methods, and retrained oracles judge them.

N full models are trained on all data and N reference oracles without the forget set. Every method
then starts from each full model; its N results are compared with the oracles, point by point, on
the forget set, the retain set and the validation set. `retrain` trains N more oracles: what exact
unlearning would score.
"""

import dataclasses
import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxunlearn import data as datasets
from jaxunlearn import nn
from jaxunlearn.comparison import estimates, judging
from jaxunlearn.comparison.models import Job, NonFiniteError, Progress, forget_phase, train_phase
from jaxunlearn.comparison.settings import Estimates, Settings, check_run
from jaxunlearn.core import mesh as meshes
from jaxunlearn.core.model import Model
from jaxunlearn.core.run_folder import RunFolder, run_record
from jaxunlearn.data import Dataset, augment, forget_sets
from jaxunlearn.unlearn import Problem, Unlearned, matching
from jaxunlearn.unlearn.methods import BASELINES, METHODS, check_settings

__all__ = [
    "Estimates",
    "Job",
    "Methods",
    "NonFiniteError",
    "Progress",
    "Settings",
    "build_model",
    "devices",
    "execute",
    "forget_set",
    "prepare",
    "run",
]


Methods = Mapping[str, tuple[Callable[..., Unlearned], Any]]
# These are no names of methods.
_PHASES = ("full", "oracle", "targets", "members", "effect", "evaluation")


def run(
    settings: Settings,
    methods: Methods = BASELINES,
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
            dataclasses. By default those that need no estimates; where a class of settings has
            `needs`, "effect" or "oracle_logits", the problem gets it (see `Estimates`). The keys of
            a method's models follow from its name up to an "@": "dmm@2" and "dmm@4" with 2 and 4
            epochs are one course of unlearning, looked at twice. `none` and
            `retrain` are always among the results, and `retrain` takes the training of `settings`.
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
    methods: Methods = BASELINES,
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
        if not re.fullmatch(r"[A-Za-z0-9][\w.=+-]*(@[\w.=+-]+)?", name) or name in _PHASES:
            raise ValueError(
                f"method name is {name!r}; it needs letters, digits and any of _ . = + -, perhaps "
                f"@ and a label, and must not be one of {', '.join(_PHASES)}"
            )
        if not dataclasses.is_dataclass(own) or type(own).__hash__ is None:
            raise ValueError(
                f"the settings of {name} are {own!r}; an instance of a frozen dataclass is needed"
            )
        check_settings("training" if name == "retrain" else name, own)
    if settings.n_models < 2:
        raise ValueError(f"n_models is {settings.n_models}; at least 2 are needed for a comparison")
    check_run(settings.seed, settings.lane_width)
    mesh = _checked_mesh(settings, mesh)
    dataset = datasets.load(settings.data, settings.n_train, settings.n_val, data_dir=data_dir)
    settings = dataclasses.replace(settings, n_train=len(dataset.x_train), n_val=len(dataset.x_val))
    forget = forget_set(settings, dataset)
    problem = Problem.of(dataset, forget)
    needs = set()
    for name, (_, own) in methods.items():
        needs |= {getattr(own, "needs", None)} - {None}
        if isinstance(own, matching.OracleMatching):
            matching.check_sample(own, len(problem.forget), len(problem.retain), name)
    estimates.check(
        settings.estimates, needs, len(dataset.x_train), settings.n_models, settings.training
    )
    if "effect" in needs and settings.estimates.attribution != "trak":
        n_points = len(dataset.x_train) + len(dataset.x_val)
        estimates.check_space(out, settings.estimates.members, n_points, dataset.n_classes)
    model = build_model(settings.model, settings.budget, dataset)
    own = {name: dataclasses.asdict(config) for name, (_, config) in methods.items()}
    record = run_record(settings, data=dataset.arrays, forget=forget)
    folder = RunFolder(out, record, own, resume)
    return Job(settings, methods, dataset, problem, model, record, folder, mesh)


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
    n_models = job.settings.n_models
    full = train_phase(job, "full", everything, store("full"), progress, n_models)
    oracle = train_phase(job, "oracle", job.problem.retain, store("oracle"), progress, n_models)
    estimated = estimates.estimate(job, full, progress)
    judge = judging.Judge(job.dataset, job.problem)
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
            given = {}
            if needs := getattr(job.methods[name][1], "needs", None):
                own = {field: a for field, a in estimated.own.items() if field == needs}
                given = {"problem": estimated.problem, "own": own}
            unlearned[name] = forget_phase(job, name, full, progress, **given)
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
        one_retraining = unlearned["retrain"]["n_gradients"].mean()
        for name, row in results["methods"].items():
            shared = estimated.gradients.get(getattr(job.methods[name][1], "needs", ""), 0)
            row["cost_shared"] = float(shared / one_retraining)
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


def build_model(name: str, budget: int, dataset: Dataset) -> Model:
    """A network by its name, see `Settings`, checked to fit the data set's inputs.

    Raises:
        ValueError: an unknown name, or images that are too small, before anything is compiled.
    """
    model, x = _network(name, budget, dataset), dataset.x_train
    image = jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
    try:
        jax.eval_shape(lambda key, x: model.apply(*model.init(key), x), jax.random.key(0), image)
    except ValueError as error:
        shape = " x ".join(map(str, image.shape[1:]))
        raise ValueError(
            f"model is {name!r}, which does not fit inputs of {shape}: {error}"
        ) from error
    return model


def _network(name: str, budget: int, dataset: Dataset) -> Model:
    """The network of the settings."""
    shape, n_classes = dataset.x_train.shape[1:], dataset.n_classes
    residual = re.fullmatch(r"wrn-(\d+)-(\d+)", name)
    if name == "mlp":
        model = nn.mlp(int(np.prod(shape)), (64,), n_classes)
    elif name in ("cnn", "cnn_bn"):
        model = nn.cnn(shape, (16, 32), n_classes, batch_norm=name == "cnn_bn")
    elif name == "small_cnn":
        model = nn.small_cnn(shape, budget, n_classes)
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
