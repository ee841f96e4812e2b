"""The main job: many models forget by several methods, and retrained oracles judge them.

N full models are trained on all data and N reference oracles without the forget set. Every method
then starts from each full model; its N results are compared with the oracles, point by point, on
the forget set, the retain set and the validation set. `retrain` trains N more oracles: what exact
unlearning would score.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxunlearn.comparison import ahead, checking, estimates, forgetting, judging, weights
from jaxunlearn.comparison.estimates import Estimated
from jaxunlearn.comparison.models import (
    Job,
    Methods,
    forget_phase,
    recorded,
    rows_of,
    train_phase,
    with_data,
)
from jaxunlearn.comparison.plugins import Plugin
from jaxunlearn.comparison.settings import RENAMED, Settings, check_run
from jaxunlearn.comparison.weights import network_for
from jaxunlearn.core import mesh as meshes
from jaxunlearn.core import study
from jaxunlearn.core.checks import NonFiniteError
from jaxunlearn.core.model import Model
from jaxunlearn.core.run_folder import Progress, RunFolder, run_record
from jaxunlearn.core.study import Where
from jaxunlearn.data import Dataset
from jaxunlearn.unlearn import Problem, matching
from jaxunlearn.unlearn.methods import BASELINES, METHODS


def devices(settings: Settings, n_devices: int) -> Mesh:
    """A mesh for the settings: an axis `models`, and with `batch_shards` an axis `data`."""
    shards = settings.batch_shards
    if shards < 1 or n_devices % shards:
        raise ValueError(
            f"batch_shards is {shards}; it must be at least 1 and divide the {n_devices} devices"
        )
    return meshes.make({"models": n_devices // shards} | ({"data": shards} if shards > 1 else {}))


@study.begins
def prepare(
    settings: Settings,
    where: Where,
    methods: Methods = BASELINES,
    networks: Mapping[str, Model] = MappingProxyType({}),
    *,
    plugins: Sequence[Plugin] = (),
    save: Sequence[str] = (),
) -> Job:
    """Checks everything that can be wrong before work starts.

    Args:
        settings: what is compared.
        where: where; a resumed run may have other methods, and other settings of methods without a
            finished lane. For its mesh see `devices`.
        methods: `{name: (method, its settings)}`, see `methods.METHODS`; settings are frozen
            dataclasses. By default those that need no estimates; where a class of settings has
            `needs`, "effect" or "oracle_logits", the problem gets it (see `Estimates`). The keys of
            a method's models follow from its name up to an "@": "dmm@2" and "dmm@4" with 2 and 4
            epochs are one course of unlearning, looked at twice. `none` and
            `retrain` are always among the results, and `retrain` takes the training of `settings`.
        networks: the caller's own, `{name: model}`, which the model of the settings may name.
        plugins: those of the methods that come from files, see `plugins.load`; they run with the
            settings that `methods` has for them, else with their own. The record names the files.
        save: methods whose weights are written, beside the full models' and the oracles', see
            `weights.load`. A resumed run computes methods anew that were not saved before.

    Raises:
        ValueError: bad settings or a folder that does not fit; nothing has been written then.
    """
    methods = _checked_methods(settings, methods, plugins, save)
    if settings.n_models < 2:
        raise ValueError(f"n_models is {settings.n_models}; at least 2 are needed for a comparison")
    check_run(settings.seed, settings.lane_width)
    mesh = _checked_mesh(settings, where.mesh)
    settings, dataset = with_data(settings, where.data_dir)
    network = settings.model or weights.default_network(dataset)
    settings = dataclasses.replace(settings, model=network)
    settings, dataset, forget = forgetting.chosen(settings, dataset)
    problem = Problem.of(dataset, forget)
    _check_needs(settings, methods, dataset, problem, where.out)
    model, layout = _network(network, settings.multiply_adds, dataset, networks)
    _check_traces(methods, plugins, save, model, problem, len(dataset.x_val))
    record = run_record(settings, data=dataset.arrays, forget=forget, **layout)
    del record["settings"]["forget_files"], record["settings"]["forget_classes"]  # hashed above
    return Job(
        settings=settings,
        record=record,
        folder=RunFolder(where.out, record, recorded(methods, plugins), where.resume, RENAMED),
        mesh=mesh,
        methods=methods,
        dataset=dataset,
        problem=problem,
        model=model,
        plugins=tuple(plugins),
        saved=tuple(save),
        is_own=network in networks,
    )


def _checked_methods(
    settings: Settings, methods: Methods, plugins: Sequence[Plugin], save: Sequence[str]
) -> Methods:
    """All methods that run, `none` and `retrain` first."""
    for name, pair in methods.items() if isinstance(methods, Mapping) else {"": methods}.items():
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise ValueError(
                f"methods has {name!r}: {pair!r:.80}; {{name: (method, settings)}} is needed"
            )
    every = {name: METHODS[name] for name in ("none", "retrain")} | dict(methods)
    every["retrain"] = (METHODS["retrain"][0], settings.training)
    every |= {one.name: every.get(one.name, (one.function, one.settings)) for one in plugins}
    for name, (method, config) in every.items():
        checking.check_method(name, method, config)
    checking.check_saved(save, every)
    return every


def _check_traces(
    methods: Methods,
    plugins: Sequence[Plugin],
    save: Sequence[str],
    model: Model,
    problem: Problem,
    n_val: int,
) -> None:
    """Raises a ValueError for a method that fails, or whose weights cannot be saved."""
    files = {plugin.name: plugin.file for plugin in plugins}
    for name, (method, config) in methods.items():
        if name in save or not checking.is_ours(method):
            n_points, file = len(problem.x) + n_val, files.get(name, "")
            result = checking.check_trace(name, method, config, model, problem, n_points, file)
            if name in save:
                checking.check_weights(name, result)


def _check_needs(
    settings: Settings,
    methods: Methods,
    dataset: Dataset,
    problem: Problem,
    out: str | os.PathLike,
) -> None:
    """Raises a ValueError if what the methods need to be given cannot be estimated."""
    needs = set()
    for name, (_, config) in methods.items():
        needs |= {getattr(config, "needs", None)} - {None}
        if isinstance(config, matching.OracleMatching):
            matching.check_sample(config, len(problem.forget), len(problem.retain), name)
    n, m, estimated = len(dataset.x_train), len(dataset.x_val), settings.estimates
    estimates.check(estimated, needs, n, settings.n_models, settings.training)
    if "effect" in needs and estimated.attribution != "trak":
        estimates.check_space(out, estimated.members, n + m, dataset.n_classes)


def _network(
    name: str, multiply_adds: int, dataset: Dataset, networks: Mapping[str, Model]
) -> tuple[Model, dict[str, np.ndarray]]:
    """The network; of one of the caller's also its layout, for the record knows only its name."""
    if not isinstance(networks, Mapping) or not all(
        isinstance(model, Model) for model in networks.values()
    ):
        raise ValueError(f"networks is {networks!r:.80}; {{name: Model}} is needed")
    if name not in networks:
        return network_for(name, multiply_adds, dataset), {}
    model, inputs = networks[name], dataset.x_train
    x = jax.ShapeDtypeStruct((1, *inputs.shape[1:]), inputs.dtype)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    try:
        logits, _ = jax.eval_shape(model.apply, *shapes, x)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"model is {name!r}, which cannot read {x.dtype} inputs of {x.shape}: {error}"
        ) from error
    if jax.tree.map(np.shape, logits) != (1, dataset.n_classes):
        raise ValueError(
            f"model is {name!r}, which gives {jax.tree.map(np.shape, logits)} for one "
            f"input; logits (1, {dataset.n_classes}) are needed"
        )
    layout = repr(jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), shapes))
    return model, {"network": np.frombuffer(layout.encode(), np.uint8)}


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


def execute(job: Job, progress: Progress = study.quiet) -> dict[str, Any]:
    """Does the work of a prepared job; writes `results.json` and `margins.npz` into its folder.

    Finished lanes of models lie in its `lanes`; a run that was stopped in any way goes on from them
    to the same bits, on any number of devices. Of several processes, which share the folder, each
    calls this and the first one writes.

    Args:
        job: from `prepare`.
        progress: called as models finish.

    Returns:
        The contents of `results.json`.

    Raises:
        NonFiniteError: a method diverged; the methods before it are in `results.json`.
        ConnectionError: another process of the run died.
    """
    with ahead.compiling(job):
        return _execute(job, progress)


def _execute(job: Job, progress: Progress) -> dict[str, Any]:
    store, everything = job.folder.lanes, np.arange(len(job.dataset.x_train))
    n_models = job.settings.n_models
    full = train_phase(job, "full", everything, store("full"), progress, n_models)
    oracle = train_phase(job, "oracle", job.problem.retain, store("oracle"), progress, n_models)
    if job.saved:
        _keep_weights(job, "original", full)
        _keep_weights(job, "oracle", oracle)
    estimated = estimates.estimate(job, full, progress)
    results, failure = _described(job), None
    unlearned: dict[str, dict[str, np.ndarray]] = {}
    for name in job.methods:
        try:
            unlearned[name] = _forget(job, name, full, estimated, progress)
            if name in job.saved:
                _keep_weights(job, name, unlearned[name])
        except NonFiniteError as error:  # the methods before it are still reported
            failure = error
            results["failed"] = str(error)
            break
    if "retrain" in unlearned:
        _judge(job, results, oracle, unlearned, estimated, progress)
    if failure is not None:
        raise failure
    return json.loads(json.dumps(results))  # as it is in the file: its tuples are lists


run = study.runner(prepare, execute)


def _keep_weights(job: Job, name: str, outputs: dict[str, Any]) -> None:
    """Writes the weights of some models, which what comes after does not read."""
    made = (str(job.settings.model), job.settings.multiply_adds, job.dataset)
    of = None if job.is_own else weights.described(*made)
    with meshes.together():
        if meshes.is_first():
            weights.save(job.folder.path / "weights" / f"{name}.safetensors", outputs, of)


def _described(job: Job) -> dict[str, Any]:
    """The results so far: what was done, and no numbers yet."""
    forget = np.asarray(job.problem.forget).tolist()
    plugins = {plugin.name: plugin.origin for plugin in job.plugins}
    return {
        "schema": 1,
        "n_models": job.settings.n_models,
        "methods": {},
        "floor": {},
        "forget_set": {"kind": job.settings.forget, "size": len(forget), "indices": forget},
        "settings": job.record["settings"] | {"methods": recorded(job.methods, job.plugins)},
        "versions": job.record["versions"],
        **({"plugins": plugins} if plugins else {}),
        **rows_of(job.dataset),
    }


def _forget(
    job: Job, name: str, full: dict[str, Any], estimated: Estimated, progress: Progress
) -> dict[str, np.ndarray]:
    """A method's models, which are given estimates only where it needs them."""
    needs = getattr(job.methods[name][1], "needs", None)
    if needs is None:
        return forget_phase(job, name, full, progress)
    by_model = {field: a for field, a in estimated.by_model.items() if field == needs}
    return forget_phase(job, name, full, progress, problem=estimated.problem, by_model=by_model)


def _judge(
    job: Job,
    results: dict[str, Any],
    oracle: dict[str, Any],
    unlearned: dict[str, dict[str, np.ndarray]],
    estimated: Estimated,
    progress: Progress,
) -> None:
    """Adds the numbers to the results, and writes them and the margins."""
    progress("evaluation", 0, 1)
    judge = judging.Judge(job.dataset, job.problem)
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
