"""100 MLPs on digits: our lanes against PyTorch, one model after the other and stacked."""

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
from jaxunlearn.unlearn.training import Training, train

N_MODELS, WIDTH, N_TRAIN = 100, 25, 1200
AFTER_TRAINING = 1e-3  # allowed difference of logits after 400 steps
TRAINING = Training()
MODEL = nn.mlp(64, (64,), 10)


def one(shared: Problem, key) -> dict:
    """Trains one model; its logits on the training set."""
    result = train(MODEL, shared, jnp.arange(N_TRAIN), key, **vars(TRAINING))
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
    gap_loop, gap_stacked = _agree(problem, members, x, y)
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
        Row(what, mine, sequential, "PyTorch loop", gap_loop, target=8.0, gflops=gflops),
        Row(what, mine, together, "torch.func.vmap, stacked", gap_stacked, gflops=gflops),
    ]


def _agree(problem: Problem, members, x, y) -> tuple[float, float]:
    """The same initial weights and batches give the same logits after the whole training.

    The stacked peer is compared on all models, the loop on the first three.
    """
    source = batches(problem.arrays, jnp.arange(N_TRAIN), TRAINING.batch_size)
    n_steps = TRAINING.epochs * source.steps_per_epoch
    got = ensemble.run(one, problem, members, width=WIDTH)["logits"]

    @jax.jit
    def start(key):
        plan_key = keys.fold(keys.fold(key, "train"), "data")
        return MODEL.init(keys.fold(key, "init"))[0], source.plan(plan_key, jnp.arange(n_steps))

    starts = [start(key) for key in members]
    tables = torch.tensor(np.stack([np.asarray(table, np.int64) for _, table in starts]))
    nets = [torch_mlp.network(params) for params, _ in starts]
    gap_stacked = agree(
        "stacked", got, torch_mlp.stacked(nets, x, y, tables, TRAINING), AFTER_TRAINING
    )
    gap_loop = max(
        agree(
            "loop",
            got[i],
            torch_mlp.train_one(nets[i], x, y, tables[i], TRAINING)(x).detach(),
            AFTER_TRAINING,
        )
        for i in range(3)
    )
    return gap_loop, gap_stacked
