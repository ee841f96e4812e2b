"""The main job: many models forget by several methods, and retrained oracles judge them.

N full models are trained on all data and N reference oracles without the forget set. Every method
then starts from each full model; its N results are compared with the oracles, point by point, on
the forget set, the retain set and the validation set. `retrain` trains N more oracles: what exact
unlearning would score.
"""

import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxunlearn import data as datasets
from jaxunlearn import nn
from jaxunlearn.core import ensemble, keys, tree
from jaxunlearn.core.checkpoint import BlockStore, replacing
from jaxunlearn.core.model import Model
from jaxunlearn.data import Dataset, forget_sets
from jaxunlearn.unlearn import _report
from jaxunlearn.unlearn._problem import Problem
from jaxunlearn.unlearn.methods import METHODS, bind
from jaxunlearn.unlearn.training import Training, train


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is compared; together with the methods' own settings it decides every number.

    Attributes:
        data: the data set; "digits" is embedded.
        model: "mlp" (one hidden layer of 64), "cnn" (two 3x3 convolutions), or "cnn_bn", the same
            with BatchNorm.
        n_train: training examples; the rest is validation.
        forget: "random", "class" (random within a class), "cluster" (an outlying example of a class
            and its nearest neighbours within it), "pc" (the top of the first principal component),
            or "file" (indices from a file).
        forget_size: size of the forget set, unless it comes from a file.
        forget_class: class of a "class" or "cluster" forget set.
        forget_file: `.npy` or text file of training indices, for "file".
        n_models: models a side, at least 2; below about 100 the noise of KLOM hides differences.
        lane_width: models computed together; part of what decides the bits.
        seed: of all models; data and forget set are the same for every seed.
        training: how full models and oracles are trained.
    """

    data: str = "digits"
    model: Literal["mlp", "cnn", "cnn_bn"] = "mlp"
    n_train: int = 1200
    forget: Literal["random", "class", "cluster", "pc", "file"] = "cluster"
    forget_size: int = 30
    forget_class: int = 8
    forget_file: str | None = None
    n_models: int = 100
    lane_width: int = 25
    seed: int = 0
    training: Training = Training()


class NonFiniteError(ArithmeticError):
    """A loss or an output is NaN or infinite; says in which method, member and step."""


class RunFolderError(ValueError):
    """The output folder does not fit the run."""


Progress = Callable[[str, int, int], None]  # (phase, members finished, members in all)


def run(
    settings: Settings,
    methods: Mapping[str, tuple[Callable, Any]] = METHODS,
    *,
    out: str | os.PathLike,
    resume: bool = False,
    mesh: Mesh | None = None,
    progress: Progress = lambda phase, done, total: None,
) -> dict[str, Any]:
    """Runs the comparison and writes `results.json` into the output folder.

    Finished lanes of models lie in `out/lanes`; a run that was stopped in any way goes on from
    them to the same bits, on any number of devices.

    Args:
        settings: what is compared.
        methods: `{name: (method, its settings)}`, see `methods.METHODS`; `none` and `retrain` are
            always among the results, and `retrain` takes the training of `settings`.
        out: the output folder: new or empty, or (with `resume`) that of the same run.
        resume: whether to go on with the run in `out`, if there is one.
        mesh: devices, with an axis `models`; by default one.
        progress: called as members finish.

    Returns:
        The contents of `results.json`.

    Raises:
        ValueError: bad settings or a folder that does not fit; nothing has been written then.
        NonFiniteError: a method diverged; the methods before it are in `results.json`.
    """
    methods = {name: METHODS[name] for name in ("none", "retrain")} | dict(methods)
    methods["retrain"] = (METHODS["retrain"][0], settings.training)
    dataset, forget = prepare(settings)
    problem, model = _problem(dataset, forget), build_model(settings, dataset)
    record = _record(settings, methods, dataset, forget)
    folder = _Folder(Path(out), record, resume)

    judge = _report.Judge(dataset, problem)
    work = _Work(settings, dataset, problem, model, folder, mesh, progress)
    full = work.train_models("full", np.arange(settings.n_train))
    oracle = work.train_models("oracle", problem.retain)
    results = {
        "schema": 1,
        "n_models": settings.n_models,
        "methods": {},
        "floor": {},
        "forget_set": {"kind": settings.forget, "size": len(forget), "indices": forget.tolist()},
        **record,
    }
    unlearned: dict[str, dict[str, np.ndarray]] = {}
    try:
        for name, (method, own) in methods.items():
            unlearned[name] = work.apply_method(name, bind(method, own), full)
    except NonFiniteError as error:
        results["failed"] = str(error)
        raise
    finally:
        # Also after a failure: what is finished is reported.
        if "retrain" in unlearned:
            results |= judge.judge(oracle["logits"], unlearned, folder.seconds)
            folder.write_json("results.json", results)
            folder.write_margins(judge.margins(oracle["logits"]), judge.all_margins(unlearned))
    return results


def prepare(settings: Settings) -> tuple[Dataset, np.ndarray]:
    """The data set and the forget set of the settings, or a ValueError that says what is wrong."""
    if settings.n_models < 2:
        raise ValueError(f"n_models is {settings.n_models}; at least 2 are needed for a comparison")
    if settings.lane_width < 1:
        raise ValueError(f"lane_width is {settings.lane_width}; it must be at least 1")
    if settings.training.epochs < 1 or settings.training.batch_size < 1:
        raise ValueError("training: epochs and batch_size must be at least 1")
    dataset = datasets.load(settings.data, settings.n_train)
    x, y, size = dataset.x_train, dataset.y_train, settings.forget_size
    if settings.forget == "random":
        forget = forget_sets.random(len(x), size)
    elif settings.forget == "class":
        forget = forget_sets.class_restricted(y, settings.forget_class, size)
    elif settings.forget == "cluster":
        forget = forget_sets.cluster(x, y, settings.forget_class, size)
    elif settings.forget == "pc":
        forget = forget_sets.principal_component(x, size)
    elif settings.forget == "file":
        if settings.forget_file is None:
            raise ValueError("forget is 'file', but forget_file is not given")
        forget = forget_sets.from_file(settings.forget_file, len(x))
    else:
        raise ValueError(
            f"forget is {settings.forget!r}; it must be random, class, cluster, pc or file"
        )
    return dataset, forget


def build_model(settings: Settings, dataset: Dataset) -> Model:
    """The network of the settings."""
    shape = dataset.x_train.shape[1:]
    if settings.model == "mlp":
        return nn.mlp(int(np.prod(shape)), (64,), dataset.n_classes)
    if settings.model in ("cnn", "cnn_bn"):
        return nn.cnn(shape, (16, 32), dataset.n_classes, batch_norm=settings.model == "cnn_bn")
    raise ValueError(f"model is {settings.model!r}; it must be mlp, cnn or cnn_bn")


def _problem(dataset: Dataset, forget: np.ndarray) -> Problem:
    retain = np.setdiff1d(np.arange(len(dataset.x_train)), forget)
    return Problem(dataset.x_train, dataset.y_train, retain, forget, dataset.n_classes)


@dataclasses.dataclass(frozen=True)
class _Work:
    """The phases of one run: each trains or changes all models, lane by lane."""

    settings: Settings
    dataset: Dataset
    problem: Problem
    model: Model
    folder: "_Folder"
    mesh: Mesh | None
    progress: Progress

    @property
    def _shared(self) -> dict[str, Any]:
        return {"problem": self.problem, "x_val": self.dataset.x_val}

    def train_models(self, phase: str, indices: np.ndarray) -> dict[str, Any]:
        """Trains all models of a phase on some rows; returns parameters, statistics and logits."""
        training = vars(self.settings.training)

        def one(shared, key):
            problem = shared["problem"]
            result = train(self.model, problem, shared["indices"], key, **training)
            return {"params": result.params, "stats": result.stats} | self._outputs(shared, result)

        return self._run(phase, one, self._shared | {"indices": indices}, self._keys(phase))

    def apply_method(self, name: str, method: Callable, full: dict[str, Any]) -> dict[str, Any]:
        """Lets all full models forget; returns logits, and the gradients it took."""

        def one(shared, member):
            result = method(
                self.model, member["params"], member["stats"], shared["problem"], member["key"]
            )
            return self._outputs(shared, result)

        members = {
            "params": full["params"], "stats": full.get("stats", {}), "key": self._keys(name)
        }
        return self._run(name, one, self._shared, members)

    def _outputs(self, shared, result) -> dict[str, jax.Array]:
        """Logits of all points, train then validation, in eval mode."""
        x = jnp.concatenate([shared["problem"].x, shared["x_val"]])
        logits, _ = self.model.apply(result.params, result.stats, x)
        n_gradients = jnp.asarray(result.n_gradients, jnp.float32)
        return {"logits": logits, "losses": result.losses, "n_gradients": n_gradients}

    def _keys(self, phase: str) -> jax.Array:
        root = keys.fold(jax.random.key(self.settings.seed), "model", phase)
        return jax.vmap(lambda i: keys.fold(root, i))(jnp.arange(self.settings.n_models))

    def _run(self, phase: str, one: Callable, shared: Any, members: Any) -> dict[str, Any]:
        clock = _Clock(self.folder, phase)

        def report(done: int) -> None:
            clock.tick(done)
            self.progress(phase, done, self.settings.n_models)

        return ensemble.run(
            one,
            jax.tree.map(jnp.asarray, shared),
            members,
            width=self.settings.lane_width,
            mode=ensemble.pick_mode(self.settings.model != "mlp"),
            mesh=self.mesh,
            store=BlockStore(self.folder.path / "lanes" / phase),
            check=lambda lane, first: _check_finite(phase, lane, first),
            callback=report,
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


class _Clock:
    """Wall time of a phase, compilation apart, summed over interrupted runs."""

    def __init__(self, folder: "_Folder", phase: str):
        self.folder, self.phase = folder, phase
        self.last, self.done = time.perf_counter(), None

    def tick(self, done: int) -> None:
        now = time.perf_counter()
        if self.done is not None:
            kind = "compile" if done == self.done else "run"
            self.folder.add_seconds(self.phase, kind, now - self.last)
        self.last, self.done = now, done


class _Folder:
    """The output folder of one run: its settings, lanes, times and results."""

    def __init__(self, path: Path, record: dict[str, Any], resume: bool):
        self.path = path
        if path.exists() and not path.is_dir():
            raise RunFolderError(f"out is {str(path)!r}, which is a file; name a folder")
        occupied = path.exists() and any(path.iterdir())
        begun = path / "settings.json"
        if occupied and not begun.exists():
            raise RunFolderError(f"out is {str(path)!r}, which is not empty and holds no run")
        if occupied and not resume:
            raise RunFolderError(
                f"out is {str(path)!r}, which holds a run; give resume to go on with it, or "
                "another folder"
            )
        if occupied:
            _same_record(json.loads(begun.read_text()), record, path)
        else:
            path.mkdir(parents=True, exist_ok=True)
            self.write_json("settings.json", record)
        times = path / "seconds.json"
        self.seconds = json.loads(times.read_text()) if times.exists() else {}

    def write_json(self, name: str, content: Any) -> None:
        """Writes a file at once; numbers that JSON does not know are an error."""
        with replacing(self.path / name) as file:
            file.write((json.dumps(content, indent=1, allow_nan=False) + "\n").encode())

    def add_seconds(self, phase: str, kind: str, seconds: float) -> None:
        """Adds to the time of a phase, `kind` being "compile" or "run"."""
        own = self.seconds.setdefault(phase, {"compile": 0.0, "run": 0.0})
        own[kind] += seconds
        self.write_json("seconds.json", self.seconds)

    def write_margins(self, oracle: np.ndarray, unlearned: dict[str, np.ndarray]) -> None:
        """Writes `margins.npz`: [N, P] of the oracles and of each method, train then validation."""
        with replacing(self.path / "margins.npz") as file:
            np.savez(file, allow_pickle=False, oracle=oracle, **unlearned)


def _record(settings, methods, dataset: Dataset, forget: np.ndarray) -> dict[str, Any]:
    """What must be equal for a run to go on: settings, data and versions."""
    own = {name: dataclasses.asdict(config) for name, (_, config) in methods.items()}
    arrays = [dataset.x_train, dataset.y_train, dataset.x_val, dataset.y_val]
    record = {
        "settings": {
            **dataclasses.asdict(settings),
            "methods": own,
            "data_sha256": tree.digest(arrays),
            "forget_sha256": tree.digest(forget),
        },
        "versions": {
            "jax": jax.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "backend": jax.default_backend(),
            "device": jax.devices()[0].device_kind,
        },
    }
    return json.loads(json.dumps(record))  # tuples become lists, as they will in the file


def _same_record(before: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    for name, old, new in _differences(before, now):
        raise RunFolderError(
            f"the run in {str(path)!r} has {name} = {old!r}, but now it is {new!r}; resume it with "
            "its own settings, or start another folder"
        )


def _differences(before: Any, now: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            difference
            for key in {**before, **now}
            for difference in _differences(
                before.get(key), now.get(key), f"{name}.{key}" if name else key
            )
        ]
    return [] if before == now else [(name, before, now)]
