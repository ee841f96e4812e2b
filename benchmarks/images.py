"""Convolutional networks on images: steps, many models, an epoch with augmentation, data loading.

The small CNN has four 3x3 convolutions (32, 64, 64, 128), each with BatchNorm, ReLU and a 2x2
max-pool, and batches of 128; all images are 32x32x3. Both sides take the same steps; a call of ours
is one `ensemble.run`, transfers included.
"""

import functools
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks.harness import Measured, Row, agree, best_of, measure
from benchmarks.peers import torch_images, torch_networks
from jaxunlearn import nn
from jaxunlearn.core import ensemble, loop, mesh, optimizers
from jaxunlearn.core.step import gradient_step, init_state, supervised
from jaxunlearn.data import augment, batches

CHANNELS, BATCH, N_IMAGES = (32, 64, 64, 128), 128, 2560
STEPS = 5  # of each of many models
SGD = {"lr": 0.02, "momentum": 0.9, "weight_decay": 5e-4}
SMALL = nn.cnn((32, 32, 3), CHANNELS, batch_norm=True)
NORMALISED = nn.normalised(SMALL, (torch_images.MEAN,) * 3, (torch_images.STD,) * 3)
AUGMENT = augment.compose(
    augment.flip,
    functools.partial(augment.translate, pixels=2),
    functools.partial(augment.cutout, size=4),
)


def augmented(batch, key):
    """The transformation of an epoch's batches."""
    return batch | {"x": AUGMENT(key, batch["x"])}


@functools.cache
def _images(n: int = N_IMAGES) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (n, 32, 32, 3), np.uint8)
    return pixels, rng.integers(0, 10, n).astype(np.int32)


def _floats(n: int = N_IMAGES) -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = _images(n)
    return ((pixels / 255 - torch_images.MEAN) / torch_images.STD).astype(np.float32), labels


@functools.cache  # the same arguments are the same program
def trainer(model, n_steps: int, batch: int, transform=None):
    """A function of one model: so many steps of SGD from its parameters."""

    def one(shared, member):
        optimizer = optimizers.sgd(SGD["lr"], SGD["momentum"], SGD["weight_decay"])
        source = batches(shared, jnp.arange(len(shared["y"])), batch, transform=transform)
        state = init_state(member["params"], optimizer, member["stats"])
        take = gradient_step(supervised(model), optimizer)
        state, metrics = loop.scan(take, state, None, source, member["key"], n_steps)
        return {"params": state.params, "stats": state.stats, "loss": metrics["loss"]}

    return one


def members_of(model, n: int):
    """n freshly initialised models."""
    params, stats = jax.vmap(model.init)(jax.random.split(jax.random.key(0), n))
    return {"params": params, "stats": stats, "key": jax.random.split(jax.random.key(1), n)}


def ours(model, data, n_models: int, n_steps: int, batch: int, devices, transform=None) -> Measured:
    """Our side: the models over the axis `models`, each batch over `data`."""
    arrays = dict(zip("xy", map(jnp.asarray, data), strict=True))
    members = members_of(model, n_models)
    one, ticks = trainer(model, n_steps, batch, transform), []

    def call():
        ticks.clear()
        ensemble.run(
            one, arrays, members, width=1, mode=ensemble.pick_mode(True), mesh=devices,
            callback=lambda done: ticks.append(time.perf_counter()),
        )  # fmt: skip

    note = " x ".join(f"{size} {name}" for name, size in devices.shape.items())
    return measure(call, repeats=3, compile_seconds=lambda: ticks[1] - ticks[0], note=note)


def peer(build, data, n_models: int, n_steps: int, batch: int, transform=None) -> Measured:
    """PyTorch: one model after the other, at the best of thread counts and memory formats."""
    table = np.arange(n_steps * batch).reshape(n_steps, batch) % len(data[1])
    labels = torch.tensor(data[1].astype(np.int64))

    def run(threads, channels_last, n_models):
        layout = torch_images.setting(threads, channels_last)
        x = torch_images.images(data[0], layout)
        for _ in range(n_models):
            torch_images.train(build(), x, labels, table, layout, transform=transform, settings=SGD)

    settings = {
        f"{threads} threads{', channels last' if last else ''}": (threads, last)
        for threads in sorted({1, mesh.cores()})
        for last in (False, True)
    }
    trials = {note: functools.partial(run, *how, n_models=1) for note, how in settings.items()}
    note = best_of(trials, repeats=2).note
    return measure(functools.partial(run, *settings[note], n_models), repeats=3, note=note)


def gap(model, net, data, batch: int) -> float:
    """The largest difference after one step: logits, statistics to 1e-4, parameters to 1e-4."""
    params, stats = jax.jit(model.init)(jax.random.key(0))
    net = torch_networks.load(net, params, stats)
    x, y = data[0][:batch], data[1][:batch]
    layout = torch_images.setting(mesh.cores(), True)
    with torch.no_grad():
        theirs = net.eval()(torch_images.images(x, layout)).numpy()
    mine = jax.jit(lambda x: model.apply(params, stats, x)[0])(x)
    gaps = [agree("logits", mine, theirs, 1e-4)]
    labels = torch.tensor(y.astype(np.int64))
    torch_images.train(
        net, torch_images.images(x, layout), labels, [np.arange(batch)], layout, settings=SGD
    )
    optimizer = optimizers.sgd(SGD["lr"], SGD["momentum"], SGD["weight_decay"])
    take = jax.jit(gradient_step(supervised(model), optimizer))
    state = init_state(params, optimizer, stats)
    state, _ = take(state, None, {"x": jnp.asarray(x), "y": jnp.asarray(y)}, jax.random.key(0))
    after = torch_networks.in_torch_layout(state.params, state.stats)
    for name, value in net.state_dict().items():
        if name in after:
            gaps.append(agree(name, after[name], value.numpy(), 1e-4))
    return max(gaps)


def small() -> torch_networks.CNN:
    """The small CNN in PyTorch."""
    return torch_networks.CNN(CHANNELS, 2 * 2 * CHANNELS[-1])


def gflops(model, n_images: int) -> float:
    """Of training on so many images: three forward passes (two would do for the first layer)."""
    return 6e-9 * nn.multiply_adds(model, (32, 32, 3)) * n_images


def split(models: int, data: int):
    """A mesh of models x data."""
    return mesh.make({"models": models, "data": data} if data > 1 else {"models": models})


def steps() -> Iterator[Row]:
    """One model: a step of the small CNN and of ResNet-9."""
    n = jax.device_count()
    for name, model, build, batch, count, target in (
        ("20 steps of a small CNN, batch 128", SMALL, small, BATCH, 20, 0.65),
        ("4 steps of ResNet-9, batch 64", nn.resnet9(), torch_networks.ResNet9, 64, 4, None),
    ):
        data = _floats()
        yield Row(
            name,
            ours(model, data, 1, count, batch, split(1, n)),
            peer(build, data, 1, count, batch),
            "PyTorch",
            gap(model, build(), data, batch),
            target,
            gflops(model, count * batch),
        )


def many() -> Iterator[Row]:
    """Many models: 20 small CNNs, and what a model costs when there are 1, 2, 5, ... of them."""
    n, data = jax.device_count(), _floats()
    difference = gap(SMALL, small(), data, BATCH)
    for n_models in (20, 1, 2, 5, 10, 40):
        yield Row(
            f"{n_models} small CNN{'s' if n_models > 1 else ''}, {STEPS} steps of each",
            ours(SMALL, data, n_models, STEPS, BATCH, split(min(n, n_models), 1)),
            peer(small, data, n_models, STEPS, BATCH),
            "PyTorch loop",
            difference,
            0.65 if n_models == 20 else None,
            gflops(SMALL, n_models * STEPS * BATCH),
        )


def epoch() -> list[Row]:
    """A whole epoch of 10,240 images with flip, translation and cutout."""
    data, n = _images(10240), jax.device_count()
    count = len(data[1]) // BATCH
    return [
        Row(
            "an epoch of 10,240 images, augmented, small CNN",
            ours(NORMALISED, data, 1, count, BATCH, split(1, n), augmented),
            peer(small, data, 1, count, BATCH, torch_images.augment),
            "PyTorch, augmented by batch",
            gap(SMALL, small(), _floats(), BATCH),
            gflops=gflops(SMALL, count * BATCH),
        )
    ]


def loading() -> list[Row]:
    """Reading a shuffled, normalised epoch of 51,200 images that are in memory."""
    pixels, labels = _images(51200)
    arrays = {"x": jnp.asarray(pixels), "y": jnp.asarray(labels)}
    normalise = functools.partial(
        augment.normalise, mean=(torch_images.MEAN,) * 3, std=(torch_images.STD,) * 3
    )

    @jax.jit
    def read(arrays, key):
        source = batches(arrays, jnp.arange(len(labels)), BATCH)
        add = lambda total, _, batch, key: (total + normalise(batch["x"]).sum(), {})  # noqa: E731
        return loop.scan(add, jnp.float32(0), None, source, key, source.steps_per_epoch)[0]

    layout = torch_images.setting(mesh.cores(), False)
    x, y = torch_images.images(pixels, layout), torch.tensor(labels.astype(np.int64))
    mine = lambda: read(arrays, jax.random.key(0)).block_until_ready()  # noqa: E731
    mean = float(mine()) / pixels.size
    difference = agree("mean pixel", mean, float(torch_images.normalise(x).mean()), 1e-3)
    measured = measure(mine, note="jitted gather")
    loader = {
        f"{workers} workers": functools.partial(torch_images.read, x, y, BATCH, workers)
        for workers in (0, mesh.cores())
    }
    whole = {
        f"{threads} threads": functools.partial(_with_threads, threads, x, y)
        for threads in sorted({1, mesh.cores()})
    }
    name = "read 51,200 images, shuffled and normalised"
    return [
        Row(name, measured, best_of(loader), "PyTorch DataLoader", difference),
        Row(name, measured, best_of(whole), "PyTorch, one tensor indexed", difference),
    ]


def _with_threads(threads: int, x, y) -> float:
    torch_images.setting(threads, False)
    return torch_images.read_whole(x, y, BATCH)


def scaling() -> Iterator[Row]:
    """All devices against one: the same work (strong), and work in proportion (weak)."""
    n = jax.device_count()
    if n == 1:
        return
    models = functools.partial(ours, SMALL, _floats())
    kinds = {  # by the axis that is split: n devices, one with the same work, one with 1 / n of it
        "20 small CNNs over models": (
            models(20, STEPS, BATCH, split(n, 1)),
            models(20, STEPS, BATCH, split(1, 1)),
            models(20 // n, STEPS, BATCH, split(1, 1)),
        ),
        "a small CNN over its batch": (
            models(1, 20, BATCH, split(1, n)),
            models(1, 20, BATCH, split(1, 1)),
            models(1, 20, BATCH // n, split(1, 1)),
        ),
    }
    for name, (together, whole, part) in kinds.items():
        yield Row(f"{name}, {n} devices, strong scaling", together, whole, "1 device", 0.0)
        # Ideally n devices take as long for all of it as one for its share: a ratio of 1.
        yield Row(f"{name}, {n} devices, weak scaling", together, part, "1 device, 1 / n", 0.0)


def rows() -> Iterator[Row]:
    """The rows of the table, as they are measured."""
    for part in (steps, many, epoch, loading, scaling):
        yield from part()
