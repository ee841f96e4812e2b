"""100 MLPs on digits: our lanes against PyTorch, one model after the other and stacked."""

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks.harness import Row, agree, best_of, measure, with_peak
from benchmarks.peers import torch_mlp
from jaxunlearn import data, nn
from jaxunlearn.core import ensemble, keys, mesh
from jaxunlearn.data import batches
from jaxunlearn.unlearn import Problem
from jaxunlearn.unlearn.scratch import Training, train

N_MODELS, WIDTH, N_TRAIN = 100, 25, 1200
TRAINING = Training()
MODEL = nn.mlp(64, (64,), 10)


def one(shared: Problem, key, training: Training = TRAINING) -> dict:
    """Trains one model; its logits on the training set."""
    result = train(MODEL, shared, jnp.arange(N_TRAIN), key, **vars(training))
    return {"logits": MODEL.apply(result.params, result.stats, shared.x)[0]}


def _setting() -> tuple:
    digits = data.load("digits", N_TRAIN)
    problem = Problem.of(digits, np.array([0]))
    members = jax.vmap(lambda i: keys.fold(jax.random.key(0), i))(jnp.arange(N_MODELS))
    x = torch.tensor(digits.x_train.reshape(N_TRAIN, 64))
    return problem, members, x, torch.tensor(digits.y_train.astype(np.int64))


def side(name: str):
    """One side's call: "ours", "loop" or "stacked"."""
    problem, members, x, y = _setting()
    if name == "ours":
        devices = mesh.make()
        return lambda: ensemble.run(one, problem, members, width=WIDTH, mesh=devices)
    peer = {"loop": torch_mlp.train_loop, "stacked": torch_mlp.train_stacked}[name]
    return lambda: peer(N_MODELS, x, y, TRAINING, mesh.cores())


def rows() -> list[Row]:
    """The rows of the table."""
    problem, members, x, y = _setting()
    gap_loop, gap_stacked, note = _agree(problem, members, x, y)
    devices, ticks = mesh.make(), []

    def ours():
        # `run` calls back before and after it compiles: the first interval is the compilation.
        run = functools.partial(ensemble.run, one, problem, members, width=WIDTH, mesh=devices)
        ticks.clear()
        return run(callback=lambda done: ticks.append(time.perf_counter()))

    mine = measure(
        ours, compile_seconds=lambda: ticks[1] - ticks[0], note=f"{jax.device_count()} devices"
    )
    mine = with_peak(mine, "benchmarks.ensemble", "ours")
    cores = sorted({1, mesh.cores()})
    # A quick look at ten models finds the loop's best configuration, which then runs in full.
    trial = functools.partial(torch_mlp.train_loop, 10, x, y, TRAINING)
    settings = {
        f"{threads} threads{' ' + kind if kind else ''}": (threads, {kind: True} if kind else {})
        for threads in cores
        for kind in ("", "foreach", "fused")
    }
    fastest = best_of(
        {note: functools.partial(trial, t, **kind) for note, (t, kind) in settings.items()}
    ).note
    threads, kind = settings[fastest]
    loop = functools.partial(torch_mlp.train_loop, N_MODELS, x, y, TRAINING, threads, **kind)
    sequential = with_peak(measure(loop, repeats=3, note=fastest), "benchmarks.ensemble", "loop")
    stacked = functools.partial(torch_mlp.train_stacked, N_MODELS, x, y, TRAINING)
    together = best_of({f"{t} threads": functools.partial(stacked, t) for t in cores})
    together = with_peak(together, "benchmarks.ensemble", "stacked")
    # Multiply-adds per example: forward of both layers, two backward products of the second layer
    # and one of the first, whose input needs no gradient.
    macs = 2 * 64 * 64 + 3 * 64 * 10
    steps = TRAINING.epochs * (N_TRAIN // TRAINING.batch_size)
    gflops = 2e-9 * macs * TRAINING.batch_size * steps * N_MODELS
    what = f"train {N_MODELS} MLPs (64-64-10, {TRAINING.epochs} epochs of {N_TRAIN} digits)"
    return [
        Row(what, mine, sequential, "PyTorch loop", gap_loop, 8.0, gflops, note),
        Row(what, mine, together, "torch.func.vmap, stacked", gap_stacked, None, gflops, note),
    ]


def _agree(problem: Problem, members, x, y) -> tuple[float, float, str]:
    """The same initial weights and batches give the same logits, for all models.

    After one epoch every model must agree. After the whole training the median model must; a few
    models cross kinks of the ReLU at other steps and drift apart, whoever rounds differently.
    """
    shuffle = batches(problem.arrays, jnp.arange(N_TRAIN), TRAINING.batch_size).plan

    @jax.jit
    def start(key, numbers):
        plan_key = keys.fold(keys.fold(key, "train"), "data")
        return MODEL.init(keys.fold(key, "init"))[0], shuffle(plan_key, numbers)

    def both(training: Training, n_models: int, peer) -> np.ndarray:
        """The largest difference of each model's logits."""
        numbers = jnp.arange(training.epochs * (N_TRAIN // training.batch_size))
        starts = [start(key, numbers) for key in members[:n_models]]
        tables = torch.tensor(np.stack([np.asarray(table, np.int64) for _, table in starts]))
        nets = [torch_mlp.network(params) for params, _ in starts]
        theirs = peer(nets, x, y, tables, training)
        fn = functools.partial(one, training=training)
        ours = ensemble.run(fn, problem, members[:n_models], width=WIDTH)["logits"]
        return np.abs(ours - np.asarray(theirs)).max(axis=(1, 2))

    def loop(nets, x, y, tables, training):
        trained = [
            torch_mlp.train_one(n, x, y, t, training) for n, t in zip(nets, tables, strict=True)
        ]
        return torch.stack([net(x).detach() for net in trained])

    epoch = dataclasses.replace(TRAINING, epochs=1)
    gap_loop = agree("loop, one epoch", both(epoch, N_MODELS, loop), 0.0, 1e-4)
    gap_stacked = agree("stacked, one epoch", both(epoch, N_MODELS, torch_mlp.stacked), 0.0, 1e-4)
    drift = both(TRAINING, N_MODELS, torch_mlp.stacked)
    agree("stacked, median after training", np.median(drift), 0.0, 1e-3)
    note = (
        f"gap: largest of all models after one epoch; after {TRAINING.epochs} epochs the median "
        f"model differs by {np.median(drift):.0e}, {np.sum(drift > 1e-3)} of {N_MODELS} by more "
        f"than 1e-3, the largest by {drift.max():.0e}"
    )
    return gap_loop, gap_stacked, note
