"""Test-time adaptation of WRN-16-1: steps of TENT, CoTTA and RMT, and whole streams.

Batches of 200 images of 32x32x3, with the augmentation of each method. Our stream is one program,
whose batches are shared by one device a core; PyTorch takes a step at a time. With random weights
the source network is unsure, so that CoTTA computes all of its 32 views.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks.harness import Measured, Row, agree, best_of, measure
from benchmarks.peers import torch_tta
from jaxunlearn import nn, tta
from jaxunlearn.core import mesh
from jaxunlearn.tta import adaptation, lanes, streams
from jaxunlearn.tta.deployment import deploy

BATCH, N_SOURCE, WIDTH = 200, 2000, 64
MODEL = nn.wide_resnet(16, 1)
FACTORS = {
    "brightness": 1.1, "contrast": 0.9, "saturation": 1.2, "hue": 0.03, "gamma": 0.9,
    "order": (2, 0, 4, 1, 3), "angle": 7.0, "translate": (2, -1), "scale": 1.05, "sigma": 0.4,
    "flip": True,
}  # fmt: skip


def fixed(key, images):
    """The augmentation with fixed factors, to compare both sides."""
    del key
    return tta.augment(images, FACTORS)


@functools.cache
def images(n: int) -> np.ndarray:
    """Random images."""
    return np.random.default_rng(0).uniform(size=(n, 32, 32, 3)).astype("float32")


@functools.cache
def network():
    """Parameters, statistics, and labelled images of the source."""
    params, stats = MODEL.init(jax.random.key(0))
    labels = np.random.default_rng(1).integers(0, 10, N_SOURCE).astype(np.int32)
    return params, stats, (images(N_SOURCE), labels)


@functools.cache
def projection():
    """One projector for both sides."""
    rng = np.random.default_rng(2)
    shapes = ((WIDTH, 128), (128,), (128, 128), (128,))
    return tuple(0.1 * rng.normal(size=shape).astype("float32") for shape in shapes)


def settings(name: str, augment, *, is_compared: bool = False):
    """Settings of a method; for comparison without what is drawn."""
    common: dict[str, Any] = {"learning_rate": rate(is_compared)}
    if name == "tent":
        return common
    common["augment"] = augment
    if name == "rmt":
        return common | {"warm_up_samples": 0, "projection": projection()}
    return common | {"restore": 0.0 if is_compared else 0.01, "symmetric": is_compared}


def rate(is_compared: bool) -> float:
    """The learning rate; a tenth to compare, since Adam makes steps of rounded gradients near 0."""
    return 1e-4 if is_compared else 1e-3


def stream(method, n: int, seeds: Sequence[int] = (0,)):
    """A call that adapts to n images, in a run for each seed at once."""
    params, stats, source = network()
    deployment = deploy(MODEL, params, stats, (32, 32, 3), BATCH, source)
    tables = streams.batches(streams.in_order(n), BATCH)
    n_steps = len(tables["rows"])
    keys = [jax.random.key(seed) for seed in seeds]
    runs = lanes.begin(method, deployment, keys)
    data = adaptation.data(method, deployment, images(n), tables)
    stacked = {
        name: jnp.stack([jnp.asarray(table)] * len(keys))
        for name, table in tables.items()
        if name != "place"
    }
    own = {name: runs[name] for name in ("shared", "initial")}
    how = {"method": method, "network": deployment.network, "n_steps": n_steps}

    def call():
        state = jax.tree.map(jnp.copy, runs["state"])
        keyed = jnp.stack(keys)
        out = lanes.advance(state, own, runs["frozen"], data, stacked, keyed, 0, **how)
        return jax.block_until_ready(out)

    return call


def ours(name: str, n: int, repeats: int = 3) -> Measured:
    """Our side; all cores by one device each."""
    method = tta.METHODS[name](**settings(name, "default"))
    with jax.set_mesh(mesh.make({"data": jax.device_count()})):
        call = stream(method, n)
        return measure(call, repeats=repeats, note=f"{jax.device_count()} devices share a batch")


def torch_method(name: str, augmentation, *, is_compared: bool = False):
    """The peer at its start."""
    params, stats, (x, y) = network()
    net = torch_tta.network(params, stats)
    if name == "tent":
        return torch_tta.Tent(net, lr=rate(is_compared))
    if name == "cotta":
        restore = 0.0 if is_compared else 0.01
        more = {"restore": restore, "both": is_compared, "lr": rate(is_compared)}
        return torch_tta.CoTTA(net, augmentation, **more)
    w1, b1, w2, b2 = map(torch.tensor, projection())
    projector = torch.nn.Sequential(
        torch.nn.Linear(WIDTH, 128), torch.nn.ReLU(), torch.nn.Linear(128, 128)
    )
    names = {"0.weight": w1.T, "0.bias": b1, "2.weight": w2.T, "2.bias": b2}
    projector.load_state_dict(names)
    by_batch = torch_tta.by_batch(net)
    with torch.no_grad():
        features = torch_tta.features(by_batch, torch_tta.images(x[:BATCH]))[1]
    means = [features[torch.tensor(y[:BATCH]) == k].mean(0) for k in range(10)]
    parts = [
        (torch_tta.images(x[i : i + BATCH]), torch.tensor(y[i : i + BATCH]).long())
        for i in range(0, BATCH if is_compared else N_SOURCE, BATCH)
    ]
    prototypes, lr = torch.stack(means), rate(is_compared)
    return torch_tta.RMT(net, prototypes, endless(parts), projector, augmentation, lr=lr)


def endless(parts):
    """Batches of the source, again and again."""
    while True:
        yield from parts


def peer(name: str, n: int, repeats: int = 3) -> Measured:
    """PyTorch, one step after the other, at its best number of threads."""
    parts = [torch_tta.images(images(n)[i : i + BATCH]) for i in range(0, n, BATCH)]

    def run(threads: int, some):
        torch.set_num_threads(threads)
        method = torch_method(name, torch_tta.drawn)
        for x in some:
            method(x)

    trials = {
        f"{threads} threads": functools.partial(run, threads, parts[:1])
        for threads in sorted({1, mesh.cores()})
    }
    note = best_of(trials, repeats=2).note
    return measure(lambda: run(int(note.split()[0]), parts), repeats=repeats, note=note)


def gap(name: str) -> float:
    """The largest difference of logits over two batches, the augmentation fixed."""
    n = 2 * BATCH
    params, stats, (x, y) = network()
    method = tta.METHODS[name](**settings(name, fixed, is_compared=True))
    run = functools.partial(tta.run, batch_size=BATCH, key=jax.random.key(0))
    out = run(method, MODEL, params, stats, images(n), source=(x[:BATCH], y[:BATCH]))
    noise = FACTORS | {"noise": 0.0}
    other = torch_method(name, lambda x: torch_tta.augment(x, noise), is_compared=True)
    parts = [torch_tta.images(images(n)[i : i + BATCH]) for i in range(0, n, BATCH)]
    theirs = np.concatenate([other(part).detach().numpy() for part in parts])
    return agree(name, out.logits, theirs, 5e-4)


def rows() -> Iterator[Row]:
    """A row for some steps of each method, and for a stream of TENT and RMT."""
    for name, n_batches, target in (("tent", 5, 1.3), ("rmt", 5, 2.0), ("cotta", 2, 3.0)):
        n = n_batches * BATCH
        yield Row(
            f"{n_batches} steps of {name}, batch {BATCH}",
            ours(name, n),
            peer(name, n),
            "PyTorch as published",
            gap(name),
            target,
        )
    for name, target in (("tent", 1.3), ("rmt", 2.0)):
        yield Row(
            f"a stream of 15 x 1,000 images, {name}",
            ours(name, 15_000, repeats=1),
            peer(name, 15_000, repeats=1),
            "PyTorch as published",
            gap(name),
            target,
        )
