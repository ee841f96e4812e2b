"""The study: a network meets a stream, several methods adapt it, each in several runs."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import data as datasets
from jaxunlearn import nn
from jaxunlearn.core import checks, records, study, user_code
from jaxunlearn.core import mesh as meshes
from jaxunlearn.core.keys import fold
from jaxunlearn.core.model import Model
from jaxunlearn.core.resume import ResumePoint
from jaxunlearn.core.run_folder import Progress, RunFolder, run_record, ticking
from jaxunlearn.core.study import Where
from jaxunlearn.core.tree import Tree
from jaxunlearn.tta import choice, kept_runs, material, measures, source_network, streams
from jaxunlearn.tta.deployment import Deployment, Samples, deploy
from jaxunlearn.tta.material import Material
from jaxunlearn.tta.method import Method
from jaxunlearn.tta.plugins import Plugin
from jaxunlearn.tta.settings import Settings
from jaxunlearn.tta.source_network import Trained

_DIGITS_SIZE = 16


@dataclasses.dataclass(frozen=True)
class Job(study.Job[Settings]):
    """Work whose settings have been checked and whose folder is ready; see `prepare`."""

    dataset: datasets.Dataset
    source: Samples
    network: Trained
    material: Material
    methods: dict[str, Method]

    @property
    def is_wide_resnet(self) -> bool:
        """Whether the network is the one that the settings name, and of that kind."""
        name, classes = self.settings.network, self.dataset.n_classes
        if not name.startswith("wrn-"):
            return False
        return self.network.model is nn.by_name(name, self.source.x.shape[1:], classes)

    @property
    def phases(self) -> dict[str, float]:
        """The phases in their order, with their expected shares of the work."""
        first = {"training": 2.0} if self.network.params is None else {}
        return first | {"images": 1.0} | {name: 2.0 for name in self.methods}


@study.begins
def prepare(
    settings: Settings,
    where: Where,
    methods: dict[str, Method] | Sequence[str] = choice.DEFAULTS,
    *,
    network: Trained | None = None,
    plugins: Sequence[Plugin] = (),
) -> Job:
    """Checks everything that can be wrong before work starts.

    Args:
        settings: settings of the study.
        where: where; with `batch_shards` the devices have an axis `data`.
        methods: methods by name, or names of `tta.METHODS` with their published settings.
        network: a network of one's own in place of the named one, `Trained(model, params, stats)`;
            without parameters it is trained.
        plugins: files whose methods are among `methods`, and which may bring the network.

    Raises:
        ValueError: settings, data or a folder that do not fit, before anything is compiled.
    """
    if not isinstance(methods, dict):
        methods = choice.chosen(methods)
    _check(settings)
    size = _DIGITS_SIZE if settings.size is None and settings.data == "digits" else settings.size
    lengths = settings.n_train, settings.n_val
    dataset = datasets.load(settings.data, *lengths, size=size, data_dir=where.data_dir)
    source = Samples(source_network.as_pictures(dataset.x_train), dataset.y_train)
    image = source.x.shape[1:]
    if network is None:
        network = _network(settings, image, dataset.n_classes, plugins)
    batch = settings.window or settings.batch_size
    like = _like(network)
    deploy(network.model, *like, image, batch, (source.x, source.y))
    made = material.planned(settings, dataset)
    if made.image != image:
        raise ValueError(
            f"corrupted has images of {list(made.image)}, data of {list(image)}; size scales "
            "pictures of folders"
        )
    hashed: dict[str, Any] = {"data": dataset.arrays}
    if network.params is not None:
        hashed["network"] = [network.params, network.stats]
    record = run_record(settings, **hashed)
    if plugins:
        record["plugins"] = [plugin.origin for plugin in plugins]
    own = {name: choice.record(method) for name, method in methods.items()}
    return Job(
        settings=settings,
        record=record,
        folder=RunFolder(where.out, record, own, where.resume),
        mesh=where.mesh or meshes.make({"data": settings.batch_shards}),
        dataset=dataset,
        source=source,
        network=network,
        material=made,
        methods=dict(methods),
    )


def _check(settings: Settings) -> None:
    checks.one_of("setting", settings.setting, (*streams.SETTINGS, "drift"))
    checks.one_of("family", settings.family, ("cifar", "imagenet"))
    for name in ("batch_size", "n_seeds", "rounds", "batch_shards", "drift_length"):
        checks.whole(name, getattr(settings, name))
    if not 0 <= settings.seed <= 2**31 - settings.n_seeds:
        raise ValueError(f"seed is {settings.seed}; 0 to 2^31 - n_seeds are allowed")
    if settings.window is not None:
        checks.whole("window", settings.window, 2)
    if settings.batch_size == 1 and settings.window is None:
        raise ValueError(
            "batch_size is 1, of which no statistics can be taken; give window, the number of last "
            "images to adapt on"
        )
    if settings.batch_size % settings.batch_shards:
        raise ValueError(
            f"batch_shards is {settings.batch_shards}, which does not divide the batch_size "
            f"{settings.batch_size}"
        )


def _network(
    settings: Settings, image: tuple[int, ...], n_classes: int, plugins: Sequence[Plugin]
) -> Trained:
    """The network that a plugin brings, or else that of the settings."""
    brought = [plugin for plugin in plugins if plugin.network is not None]
    if len(brought) > 1:
        raise ValueError("plugin brings a network twice; one is needed")
    if not brought or brought[0].network is None:
        return source_network.opened(settings.network, settings.weights, image, n_classes)
    if settings.weights is not None:
        raise ValueError("weights are given, but the network is that of a plugin, which is trained")
    file = brought[0].origin["file"]
    try:
        model = brought[0].network(image, n_classes)
    except Exception as error:  # whatever the user's function does
        raise ValueError(f"plugin {file!r} fails: {user_code.where(error, file)}") from error
    if not isinstance(model, Model):
        raise ValueError(
            f"plugin {file!r}: network gave {type(model).__name__}; a core.model.Model is needed"
        )
    return Trained(model, None, None)


def _like(network: Trained) -> tuple[Tree, Tree]:
    """Parameters and statistics, or their shapes where they are still to be trained."""
    if network.params is not None:
        return network.params, network.stats
    return jax.eval_shape(lambda: network.model.init(jax.random.key(0)))


def execute(job: Job, progress: Progress = study.quiet) -> dict[str, Any]:
    """Does the work of a prepared job; one that was stopped goes on to the same bits.

    Writes `results.json`, and a trained WRN into `network.safetensors`, which `weights` reads.

    Args:
        job: from `prepare`.
        progress: called after each block of work.

    Returns:
        The contents of `results.json`.
    """
    with jax.set_mesh(job.mesh):
        params, stats = _source(job, progress)
        ticks = ticking(job.folder, "images", len(job.material.domains), progress)
        images = job.material.make(ticks)
        deployment = deploy(
            job.network.model,
            params,
            stats,
            images.shape[1:],
            job.settings.window or job.settings.batch_size,
            (job.source.x, job.source.y),
            job.settings.compute,
        )
        on_device = jnp.asarray(images)
        done = {name: _adapted(job, name, deployment, on_device, progress) for name in job.methods}
    job.folder.write_json("results.json", _results(job, params, stats, done))
    return records.read(job.folder.path / "results.json")


run = study.runner(prepare, execute)


def _source(job: Job, progress: Progress) -> tuple[Tree, Tree]:
    """The source network, trained unless it is already."""
    if job.network.params is not None:
        return job.network.params, job.network.stats
    store = job.folder.lanes("training")
    if 0 in store:
        kept = store.read(0)
        return kept["params"], kept.get("stats", {})
    total = job.settings.training.epochs * max(
        1, len(job.source.y) // min(job.settings.training.batch_size, len(job.source.y))
    )
    ticks = ticking(job.folder, "training", total, progress)
    ticks(0)
    point = ResumePoint(job.folder.path / "phases" / "training")
    params, stats = source_network.train(
        job.network.model,
        Samples(jnp.asarray(job.source.x), jnp.asarray(job.source.y)),
        job.settings.training,
        fold(jax.random.key(job.settings.seed), "source"),
        report=lambda done, _: ticks(done),
        point=point,
    )
    _check_finite(params)
    kept = jax.device_get({"params": params, "stats": stats})
    if job.is_wide_resnet:
        source_network.save(job.folder.path, job.settings.network, params, stats)
    store.write(0, {name: part for name, part in kept.items() if part})
    point.drop()
    return kept["params"], kept["stats"]


def _check_finite(params: Tree) -> None:
    """Raises a NonFiniteError for a source network that diverged."""
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(params))):
        raise checks.NonFiniteError(
            "the source network diverged in training; a lower training.learning_rate may help"
        )


def _adapted(
    job: Job, name: str, deployment: Deployment, images: jax.Array, progress: Progress
) -> dict[str, np.ndarray]:
    """What a method did in all runs, see `lanes.advance`, joined over the stream."""
    settings, folder = job.settings, job.folder
    keys = [fold(jax.random.key(settings.seed + i), name) for i in range(settings.n_seeds)]
    tables = [_tables(settings, stream) for stream in job.material.streams]
    n_batches = len(tables[0]["rows"])
    ticks = ticking(folder, name, n_batches, progress)
    return kept_runs.adapted(
        job.methods[name],
        deployment,
        images,
        {key: np.stack([table[key] for table in tables]) for key in tables[0]},
        keys,
        blocks=folder.method_lanes(name, choice.record(job.methods[name])),
        point=ResumePoint(folder.path / "phases" / name, choice.record(job.methods[name])),
        report=ticks,
    )


def _tables(settings: Settings, stream: streams.Stream) -> dict[str, np.ndarray]:
    every = settings.reset_every
    if settings.window is not None:
        return streams.windows(stream, settings.window, reset_every=every)
    return streams.batches(stream, settings.batch_size, reset_every=every)


def _results(
    job: Job, params: Tree, stats: Tree, done: dict[str, dict[str, np.ndarray]]
) -> dict[str, Any]:
    """The contents of `results.json`."""
    plan = job.material
    source = _of_images(done["source"]["predictions"][0], plan)
    of_methods = {
        name: measures.of_method(
            seen["predictions"],
            seen["entropy"],
            source,
            plan.streams,
            plan.labels,
            len(plan.visits),
        )
        for name, seen in done.items()
    }
    kinds = {kind for of in of_methods.values() for kind in of}
    by_kind = {kind: {name: of[kind] for name, of in of_methods.items()} for kind in sorted(kinds)}
    clean = Samples(source_network.as_pictures(job.dataset.x_val), job.dataset.y_val)
    accuracy = source_network.accuracy(job.network.model, params, stats, clean)
    return {
        "schema": 1,
        "domains": [list(domain) for domain in plan.visits],
        "clean_error": 1 - accuracy,
        **by_kind,
        "drift": {name: seen["drift"].tolist() for name, seen in done.items()},
        "finite": {name: seen["finite"].all(1).tolist() for name, seen in done.items()},
        "methods": {name: choice.record(method) for name, method in job.methods.items()},
        "seconds": {phase: dict(kinds) for phase, kinds in job.folder.seconds.items()},
        **job.record,
    }


def _of_images(predictions: np.ndarray, plan: Material) -> np.ndarray:
    """Predictions [N] of a stream as those of each image, int [images]."""
    rows = plan.streams[0].rows
    out = np.zeros(rows.max() + 1, predictions.dtype)
    out[rows] = predictions
    return out
