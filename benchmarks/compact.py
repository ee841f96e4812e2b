"""The lightweight CNN: stage A with augmentation, folds of seeds, latency, the whole pipeline.

Keras runs in a process of its own, as the author's notebook has it. Its branches, and PyTorch's
networks and warps, are first shown equal to ours; for the rest of Keras see
tests/parity/test_keras.py. An epoch is 6,400 images of random pixels, which take the time of any.
"""

import functools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks.harness import Measured, Row, agree, best_of, measure
from benchmarks.peers import torch_compact as peers
from jaxunlearn.compact import Recipe, files, fitting, phases
from jaxunlearn.compact import measure as costs
from jaxunlearn.core import mesh
from jaxunlearn.core.disk import write_npz
from jaxunlearn.data import augment
from jaxunlearn.nn.images import dual_cnn

SHAPE, N_IMAGES = (28, 28, 1), 6400
PAIR = dual_cnn.build(SHAPE)
KERAS = ("tensorflow", "jax")  # backends; the fastest that is there counts
FOLDS, SEEDS = 6, 3


@functools.cache
def images() -> fitting.Images:
    """Random ones; the first 100 validate, which costs next to nothing."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (N_IMAGES + 100, *SHAPE), np.uint8)
    y = rng.integers(0, 10, len(x)).astype(np.int32)
    return fitting.Images(jnp.asarray(x), jnp.asarray(y), 100)


def rows() -> Iterator[Row]:
    """All rows of the table."""
    gap, keras_gap = equal(), equal_keras()
    for batch in (32, 256):
        ours = stage_a(batch)
        yield Row(
            f"stage A, {N_IMAGES} images, batch {batch}",
            ours,
            torch_stage_a(batch),
            "PyTorch",
            gap,
            target=1.2 if batch == 32 else None,
        )
        timings = keras("train", batch)
        yield Row(
            f"stage A, {N_IMAGES} images, batch {batch}",
            ours,
            Measured(
                timings["seconds"][0],
                float(np.median(timings["seconds"][1:])),
                (min(timings["seconds"][1:]), max(timings["seconds"][1:])),
                0.0,
                note=timings["backend"],
            ),
            f"Keras {timings['keras']}",
            keras_gap,
            target=3.0 if batch == 32 else None,
        )
    yield from folds(gap)
    yield pipeline(gap)
    yield from latency(keras_gap)


def equal() -> float:
    """Logits of both networks, a warp, and a step of stage A, against PyTorch's."""
    dual, _ = PAIR.dual.init(jax.random.key(0))
    fused = dual_cnn.fuse(dual, PAIR.fused.init(jax.random.key(1))[0])
    x = images().x[:32]
    floats = augment.as_float(x)
    theirs = torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)
    with torch.no_grad():
        peer_images = theirs.float() / 255
        of_dual = peers.load(peers.Dual(SHAPE), dual)(peer_images, peer_images)
        of_fused = peers.load(peers.Fused(SHAPE).eval(), fused)(peer_images)
        matrices = peers.matrices(32, SHAPE[0])
        warped = peers.affine(peer_images, matrices).permute(0, 2, 3, 1)
    ours = PAIR.dual.apply(dual, {}, floats, floats)[0]
    gaps = [agree("dual", ours[i], of_dual[i].numpy(), 1e-5) for i in range(2)]
    gaps.append(agree("fused", PAIR.fused.apply(fused, {}, floats)[0], of_fused.numpy(), 1e-5))
    ours = augment.affine(floats, jnp.asarray(matrices.numpy()))
    gaps.append(agree("warp", ours, warped.numpy(), 1e-4))
    return max(gaps)


def equal_keras() -> float:
    """Probabilities of both branches, against those of Keras with the same weights."""
    dual, _ = PAIR.dual.init(jax.random.key(0))
    x = augment.as_float(images().x[:32])
    weights = {"x": np.asarray(x)} | {
        f"{branch}_{layer}/{part}": np.asarray(value)
        for branch, layers in dual.items()
        for layer, arrays in layers.items()
        for part, value in arrays.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.npz"
        write_npz(file, weights)
        answers = keras_all("outputs", str(file))
    ours = jax.nn.softmax(jnp.stack(PAIR.dual.apply(dual, {}, x, x)[0]))
    return max(
        agree(answer["backend"], ours, np.array(answer["probabilities"]), 1e-5)
        for answer in answers
    )


def stage_a(batch: int) -> Measured:
    """An epoch of one model: both branches, augmentation, one program; steady from the second."""
    recipe = Recipe(batch_size=batch, dual_epochs=6)
    times: list[float] = []
    where = fitting.Placement(
        mesh.make({"models": 1}), tell=lambda *now: times.append(time.perf_counter())
    )
    phases.train_dual(PAIR, recipe, images(), jax.random.split(jax.random.key(0), 1), where)
    seconds = np.diff(times)
    steady = seconds[1:]
    median = float(np.median(steady))
    spread = (float(steady.min()), float(steady.max()))
    return Measured(float(seconds[0]), median, spread, float(seconds[0]) - median)


def torch_stage_a(batch: int) -> Measured:
    """The same at the best number of threads."""
    x, y = torch_images()
    table = np.random.default_rng(0).permutation(N_IMAGES).reshape(-1, batch)

    def run(threads: int) -> None:
        torch.set_num_threads(threads)
        peers.train_dual(peers.Dual(SHAPE), x, y, table)

    trials = {f"{n} threads": functools.partial(run, n) for n in sorted({1, mesh.cores()})}
    return best_of(trials)


def torch_images() -> tuple[torch.Tensor, torch.Tensor]:
    """What stage A trains on."""
    data = images()
    x = torch.tensor(np.asarray(data.x[data.n_val :])).permute(0, 3, 1, 2).contiguous()
    return x, torch.tensor(np.asarray(data.y[data.n_val :])).long()


def folds(gap: float) -> Iterator[Row]:
    """6 folds of 3 seeds, an epoch each: one program, one after the other, and PyTorch."""
    recipe = Recipe(fold_epochs=3)
    state = phases.fuse(
        PAIR,
        recipe,
        jax.vmap(PAIR.dual.init)(jax.random.split(jax.random.key(0), SEEDS))[0],
        jax.random.split(jax.random.key(1), SEEDS),
    )

    def ours(devices: int, n_models: int, fold_mode: str, n_folds: int) -> Measured:
        fold_recipe = Recipe(**{**vars(recipe), "fold_mode": fold_mode})
        times: list[float] = []
        where = fitting.Placement(
            mesh.make({"models": devices}), tell=lambda *now: times.append(time.perf_counter())
        )
        part = jax.tree.map(lambda leaf: leaf[:n_models], state)
        keys = jax.random.split(jax.random.key(2), n_models)
        phases.fine_tune(PAIR, fold_recipe, part, images(), keys, where)
        seconds = np.diff(times)
        scale = FOLDS * SEEDS / n_folds / n_models
        steady = seconds[1:3] * scale
        median = float(np.median(steady))
        first = float(seconds[0]) + median - float(np.median(seconds[1:3]))
        return Measured(first, median, (float(steady.min()), float(steady.max())), first - median)

    together = ours(mesh.cores(), SEEDS, "independent", FOLDS)
    alone = ours(1, 1, "continued", 1)
    name = f"{FOLDS} folds x {SEEDS} seeds, an epoch each"
    yield Row(name, together, alone, "ours, one after the other on one device", gap)
    on_one = ours(1, SEEDS, "independent", FOLDS)
    yield Row(f"{name}, on one device", on_one, alone, "ours, one after the other", gap)
    x, y = torch_images()
    n = N_IMAGES * (FOLDS - 1) // FOLDS // 32 * 32
    table = np.random.default_rng(0).permutation(N_IMAGES)[:n].reshape(-1, 32)

    def run(threads: int) -> None:
        torch.set_num_threads(threads)
        for _ in range(3):
            peers.train_fused(peers.Fused(SHAPE), x, y, table)

    trials = {f"{k} threads": functools.partial(run, k) for k in sorted({1, mesh.cores()})}
    theirs = best_of(trials)
    scale = FOLDS * SEEDS / 3
    scaled = Measured(
        theirs.first * scale,
        theirs.steady * scale,
        (theirs.spread[0] * scale, theirs.spread[1] * scale),
        0.0,
        note=f"{theirs.note}; 3 of {FOLDS * SEEDS} models timed",
    )
    yield Row(name, together, scaled, "PyTorch, one after the other", gap)


def pipeline(gap: float) -> Row:
    """All of the paper's training for one seed, with 2, 5 and 6 epochs."""
    recipe = Recipe(dual_epochs=2, unfreeze_epochs=1, last_epochs=1, folds=FOLDS, fold_epochs=1)
    keys = jax.random.split(jax.random.key(0), 1)
    where = fitting.Placement(mesh.make({"models": mesh.cores()}))

    def ours() -> None:
        dual = phases.train_dual(PAIR, recipe, images(), keys, where)
        fused = phases.fuse(PAIR, recipe, dual.state.params, keys)
        stages = phases.unfreeze(PAIR, recipe, fused, images(), keys, where)
        phases.fine_tune(PAIR, recipe, stages[-1].state, images(), keys, where)

    x, y = torch_images()
    rng = np.random.default_rng(0)
    epochs = {"dual": (2, N_IMAGES), "stage": (1, N_IMAGES), "fold": (1, N_IMAGES * 5 // 6)}
    tables = [
        np.concatenate([rng.permutation(N_IMAGES)[: n // 32 * 32] for _ in range(k)])
        for k, n in epochs.values()
    ]
    tables = [table.reshape(-1, 32) for table in tables]

    def theirs(threads: int) -> None:
        torch.set_num_threads(threads)
        peers.pipeline(x, y, tables, FOLDS)

    trials = {f"{k} threads": functools.partial(theirs, k) for k in sorted({1, mesh.cores()})}
    name = f"whole pipeline, {N_IMAGES} images, 2 + 5 + {FOLDS} epochs, one seed"
    return Row(name, measure(ours, repeats=3), best_of(trials), "PyTorch", gap)


def latency(gap: float) -> Iterator[Row]:
    """A single image through the exported program, against Keras' `predict` and a plain call."""
    params, _ = PAIR.fused.init(jax.random.key(0))
    program = files.export(PAIR.fused, params, SHAPE)
    call = jax.jit(jax.export.deserialize(bytearray(program)).call)
    image = np.zeros((1, *SHAPE), np.float32)
    compiled = call.lower(image).compile()

    def many() -> None:
        for _ in range(100):
            np.asarray(compiled(image))

    timings = keras("predict", 1)
    speed = costs.speed(program, SHAPE)
    ours = measure(many)
    note = f"p50 {speed['p50_ms']:.3f} ms, p99 {speed['p99_ms']:.3f} ms"
    for name in ("predict", "call"):
        seconds = np.array(timings[name])
        p50, p99 = np.percentile(seconds, [50, 99]) * 1000
        total = float(seconds.sum())
        theirs = Measured(
            total,
            total,
            (total, total),
            0.0,
            note=f"{timings['backend']}, p50 {p50:.3f} ms, p99 {p99:.3f} ms",
        )
        yield Row("100 single images", ours, theirs, f"Keras {name}", gap, note=note)


def keras(job: str, batch: int) -> dict[str, Any]:
    """The fastest of Keras' backends that are installed."""
    key = "seconds" if job == "train" else "predict"
    return min(keras_all(job, str(batch)), key=lambda timings: np.median(timings[key][1:]))


def keras_all(job: str, of: str) -> list[dict[str, Any]]:
    """What each of Keras' backends that are installed finds."""
    outputs = []
    for backend in KERAS:
        command = [sys.executable, "-m", "benchmarks.peers.keras_compact", backend, job, of]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            outputs.append(json.loads(done.stdout.splitlines()[-1]))
        else:
            print(f"Keras with {backend} does not run:", *done.stderr.splitlines()[-1:])
    if not outputs:
        raise RuntimeError("Keras does not run; install the extra `bench`")
    return outputs
