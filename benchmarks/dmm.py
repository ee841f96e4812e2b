"""Datamodels and matching: regression, fine-tuning, U-LiRA and TRAK against their peers.

The regression's peer is scikit-learn, one target after the other on a precomputed Gram matrix; its
time for all targets is extrapolated from a sample, which the row states.
"""

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks.harness import Measured, Row, agree, best_of, measure, with_peak
from benchmarks.peers import dattri_trak, torch_images, torch_matching, torch_mlp, torch_networks
from benchmarks.peers.ulira_loop import looped
from jaxunlearn import data, nn
from jaxunlearn.attribution import datamodels, trak
from jaxunlearn.core import ensemble, keys, mesh
from jaxunlearn.core.model import predict
from jaxunlearn.evaluate import ulira
from jaxunlearn.unlearn import Problem, matching

N, MEMBERS, TARGETS, SAMPLE = 2000, 5000, 2000, 16
HALF = (500, 1250, 500)
N_MODELS, N_FORGET = 100, 30
MATCHING = {
    "mlp": matching.DatamodelMatching(epochs=20, learning_rate=1e-3),
    "cnn": matching.DatamodelMatching(epochs=2, learning_rate=1e-3),
}
CNN_SHAPE, CHANNELS = (16, 16, 3), (16, 16, 32)
MLP, CNN = nn.mlp(64, (64,), 10), nn.cnn(CNN_SHAPE, CHANNELS, 10, batch_norm=True)


@functools.cache
def planted(n: int, members: int, targets: int) -> tuple[np.ndarray, np.ndarray]:
    """Masks and outputs of a sparse linear datamodel, half of whose variance is noise."""
    rng = np.random.default_rng(0)
    masks = rng.random((members, n)) < 0.5
    weights = rng.normal(size=(n, targets)) * (rng.random((n, targets)) < 0.05)
    signal = masks.astype(np.float32) @ weights.astype(np.float32)
    noise = signal.std(0) * rng.normal(size=signal.shape)
    return masks, (signal + noise).astype(np.float32)


def fit(size: tuple[int, int, int], method: str, **penalty: Any):
    """A call that fits all targets."""
    masks, outputs = planted(*size)
    return functools.partial(datamodels.fit, masks, outputs, method=method, **penalty)


def side(name: str):
    """One side's call, for its memory: a regression by method and size, or its peer."""
    method, *size = name.split()
    numbers = tuple(int(number) for number in size)
    if method == "scikit-learn":
        masks, outputs = planted(*numbers)
        return lambda: ScikitLearn(masks, outputs).fit(range(1), None)
    return fit(numbers, method)  # type: ignore[arg-type]


class ScikitLearn:
    """Lasso of one target after the other; what all of them share is computed once."""

    def __init__(self, masks: np.ndarray, outputs: np.ndarray):
        self.outputs, self.held_out = outputs, np.arange(len(masks)) % 5 == 4
        self.std = masks.std(0)
        rest = masks[~self.held_out]
        self.x = np.asfortranarray((masks - masks.mean(0)) / self.std)
        self.own = np.asfortranarray((rest - rest.mean(0)) / rest.std(0))
        self.judged = (masks[self.held_out] - rest.mean(0)) / rest.std(0)
        self.gram: Any = self.x.T @ self.x
        self.own_gram: Any = self.own.T @ self.own

    def fit(self, targets, l1: np.ndarray | None) -> np.ndarray:
        """Weights of some targets [n, targets], each at its penalty in `l1` [T] or a chosen one."""
        from sklearn.linear_model import Lasso

        weights = []
        for target in targets:
            y = self.outputs[:, target].astype(np.float64)
            penalty = self.choose(y) if l1 is None else float(l1[target])
            model = Lasso(penalty, fit_intercept=False, precompute=self.gram, max_iter=5000)
            weights.append(model.fit(self.x, y - y.mean()).coef_ / self.std)
        return np.stack(weights, 1)

    def choose(self, y: np.ndarray) -> float:
        """The penalty best for every fifth member; three worse ones end the path, as ours does."""
        from sklearn.linear_model import lasso_path

        mean = y[~self.held_out].mean()
        centred, judges = y[~self.held_out] - mean, y[self.held_out] - mean
        alphas = np.abs(self.own.T @ centred).max() / len(self.own) * np.logspace(0, -3, 40)
        start, best, error, since = None, alphas[0], np.inf, 0
        for alpha in alphas:
            _, path, _ = lasso_path(
                self.own,
                centred,
                alphas=[alpha],  # type: ignore[arg-type]
                precompute=self.own_gram,
                coef_init=start,
            )
            start = path[:, 0]
            now = np.square(judges - self.judged @ start).mean()
            best, error, since = (alpha, now, 0) if now < error else (best, error, since + 1)
            if since == 3:
                break
        return float(best)


def _regression() -> list[Row]:
    size = (N, MEMBERS, TARGETS)
    masks, outputs = planted(*size)
    sample = np.linspace(0, TARGETS - 1, SAMPLE).astype(int)
    start = time.perf_counter()
    peer = ScikitLearn(masks, outputs)
    set_up = time.perf_counter() - start
    chosen = fit(size, "lasso")()
    l1, numbers, rows = chosen.penalty, " ".join(map(str, size)), []
    for what, penalty, fitted in (
        ("a path and a held-out choice each", None, chosen),
        ("one given penalty each", l1, fit(size, "lasso", l1=l1)()),
    ):
        theirs = peer.fit(sample, penalty)
        gaps = np.abs(fitted.weights[:, sample] - theirs).max(0) / np.abs(theirs).max()
        gap = agree(what, gaps, np.zeros(SAMPLE), 1e-3)
        ours = measure(
            fit(size, "lasso", **({} if penalty is None else {"l1": penalty})), repeats=2
        )
        call = functools.partial(peer.fit, sample, penalty)
        theirs_timed = _extrapolated(measure(call, repeats=2), set_up)
        if penalty is None:
            ours = with_peak(ours, "benchmarks.dmm", f"lasso {numbers}")
            theirs_timed = with_peak(theirs_timed, "benchmarks.dmm", f"scikit-learn {numbers}")
        name = f"lasso datamodels, n {N:,}, M {MEMBERS:,}, T {TARGETS:,}, {what}"
        rows.append(Row(name, ours, theirs_timed, "scikit-learn, Lasso", gap, 20.0))
    return rows


def _extrapolated(measured: Measured, set_up: float) -> Measured:
    """All targets, from the time of a sample; what all share is counted once."""

    def whole(seconds: float) -> float:
        return set_up + seconds * TARGETS / SAMPLE

    low, high = measured.spread
    note = f"{SAMPLE} of {TARGETS:,} targets, extrapolated"
    return Measured(
        whole(measured.first), whole(measured.steady), (whole(low), whole(high)), 0.0, note
    )


def _growth() -> list[Row]:
    """Ours against ours at half of n, M or T: time and memory."""
    rows = []
    for method in ("ridge", "lasso"):
        measured = {}
        for which, size in {
            "half": HALF, "n": (2 * HALF[0], *HALF[1:]), "M": (HALF[0], 2 * HALF[1], HALF[2]),
            "T": (*HALF[:2], 2 * HALF[2]),
        }.items():  # fmt: skip
            note = "n {:,}, M {:,}, T {:,}".format(*size)
            timed = measure(fit(size, method), repeats=2, note=note)
            numbers = " ".join(map(str, size))
            measured[which] = with_peak(timed, "benchmarks.dmm", f"{method} {numbers}")
        for which in ("n", "M", "T"):
            name = f"{method} datamodels, {which} doubled"
            rows.append(Row(name, measured[which], measured["half"], "before doubling", 0.0))
    return rows


@functools.cache
def _setting(kind: str) -> dict[str, Any]:
    """Points, an effect, freshly initialised models and the same in PyTorch."""
    rng = np.random.default_rng(0)
    if kind == "mlp":
        digits = data.load("digits", 1200)
        x, y, model = digits.x_train.reshape(1200, 64), digits.y_train, MLP
    else:
        x = rng.normal(size=(1000, *CNN_SHAPE)).astype(np.float32)
        y, model = rng.integers(0, 10, 1000).astype(np.int32), CNN
    forget = np.arange(N_FORGET)
    effect = rng.normal(size=(len(x), 10)).astype(np.float32)
    problem = Problem(
        jnp.asarray(x), jnp.asarray(y), jnp.arange(N_FORGET, len(x)), jnp.asarray(forget), 10,
        effect=jnp.asarray(effect),
    )  # fmt: skip
    params, stats = jax.vmap(model.init)(jax.random.split(jax.random.key(0), N_MODELS))
    members = {
        "params": params,
        "stats": stats,
        "key": jax.random.split(jax.random.key(1), N_MODELS),
    }
    return {"model": model, "problem": problem, "members": members, "effect": effect}


def network(kind: str, params, stats) -> torch.nn.Module:
    """A PyTorch network with the numbers of one of ours."""
    if kind == "mlp":
        return torch_mlp.network(params)
    n_features = 2 * 2 * CHANNELS[-1]
    return torch_networks.load(torch_networks.CNN(CHANNELS, n_features), params, stats)


@functools.cache
def matcher(kind: str, settings: matching.DatamodelMatching):
    """DMM of one model; its logits afterwards."""
    model = _setting(kind)["model"]

    def one(shared, member):
        params, stats, key = member["params"], member["stats"], member["key"]
        result = matching.datamodel_matching(model, params, stats, shared, key, **vars(settings))
        return {"logits": predict(model, result.params, result.stats, shared.x)}

    return one


def _matched(problem: Any, settings: Any) -> tuple[np.ndarray, np.ndarray]:
    """What both sides match on: forget points and the fixed retain sample, as the method draws it.

    Returns:
        Their rows, and the sample as positions among these, forget points repeated.
    """
    retain = jax.random.permutation(jax.random.key(matching.RETAIN_SEED), problem.retain)
    n_retain = int(settings.retain_multiplier * N_FORGET)
    rows = np.concatenate([np.asarray(problem.forget), np.asarray(retain[:n_retain])])
    copies = int(settings.forget_multiplier * N_FORGET)
    return rows, np.concatenate(
        [np.resize(np.arange(N_FORGET), copies), N_FORGET + np.arange(n_retain)]
    )


def _matching(kind: str, target: float) -> Row:
    setting, settings = _setting(kind), MATCHING[kind]
    problem, members = setting["problem"], setting["members"]
    width, mode = (25, "vmap") if kind == "mlp" else (5, ensemble.pick_mode(True))
    devices = mesh.make()

    def ours_call(settings=settings):
        one = matcher(kind, settings)
        return ensemble.run(one, problem, members, width=width, mode=mode, mesh=devices)

    rows, sample = _matched(problem, settings)
    x = torch.tensor(np.asarray(problem.x))
    if kind == "cnn":
        x = torch_images.images(np.asarray(problem.x), torch.channels_last)
    effect = torch.tensor(setting["effect"])

    def nets(count):
        for i in range(count):
            params, stats = jax.tree.map(lambda a, i=i: a[i], (members["params"], members["stats"]))
            net = network(kind, params, stats)
            yield net if kind == "mlp" else net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    epoch = dataclasses.replace(settings, epochs=1)  # what both sides are compared after

    def orders(key):
        epochs = [keys.fold(key, "epoch", number) for number in range(epoch.epochs)]
        drawn = [jax.random.permutation(keys.fold(k, "order"), jnp.asarray(sample)) for k in epochs]
        return torch.tensor(np.array(drawn, np.int64))

    theirs = torch_matching.run(
        nets(3), x, effect, rows, sample, epoch, mesh.cores(),
        orders=[orders(key) for key in members["key"][:3]],
    )  # fmt: skip
    # Adam's first steps are signs of gradients: one that is nearly 0 may fall to either side.
    mine = ours_call(epoch)["logits"][:3]
    agree(kind, np.median(np.abs(mine - np.asarray(theirs))), 0.0, 1e-3)
    gap = agree(kind, mine, theirs, 1e-2)
    built = list(nets(N_MODELS))
    states = [{k: v.clone() for k, v in net.state_dict().items()} for net in built]

    def peer_call(threads, count):
        for net, state in zip(built[:count], states, strict=False):
            net.load_state_dict(state)
        return torch_matching.run(built[:count], x, effect, rows, sample, settings, threads)

    cores = sorted({1, mesh.cores()})
    trials = {f"{t} threads": functools.partial(peer_call, t, 10) for t in cores}
    best = best_of(trials, repeats=2).note
    peer = measure(
        functools.partial(peer_call, int(best.split()[0]), N_MODELS), repeats=3, note=best
    )
    ours = measure(ours_call, repeats=3)
    what = {"mlp": "MLPs (64-64-10)", "cnn": "small CNNs (16x16x3, 330,000 multiply-adds)"}[kind]
    name = f"DMM fine-tune of {N_MODELS} {what}, {settings.epochs} epochs of {len(sample)} points"
    return Row(name, ours, peer, "PyTorch loop, targets cached", gap, target)


def _ulira() -> Row:
    rng = np.random.default_rng(0)
    shape = (2000, 1000)
    inside = rng.random(shape) < 0.5
    forgot = inside & (rng.random(shape) < 0.5)
    margins = rng.normal(size=shape) + forgot
    shadow = np.arange(shape[0]) >= 50
    arguments = (margins, forgot, ~inside, shadow)
    gap = agree("U-LiRA", ulira(*arguments), looped(*arguments), 1e-9)
    ours = measure(functools.partial(ulira, *arguments), repeats=5, note="numpy")
    peer = measure(functools.partial(looped, *arguments), repeats=2, note="numpy, scipy")
    note = "the loop fits its Gaussians anew for every target, as released code does"
    name = "U-LiRA of 2,000 unlearnings x 1,000 points, 50 targets"
    return Row(name, ours, peer, "loop over targets and points", gap, 50.0, note=note)


def _trak(kind: str) -> Row:
    setting = _setting(kind)
    model, problem, dim, l2 = setting["model"], setting["problem"], 512, 1e-2
    params, stats = jax.tree.map(
        lambda a: a[0], (setting["members"]["params"], setting["members"]["stats"])
    )
    x, y = np.asarray(problem.x), np.asarray(problem.y)
    n = 800
    key = jax.random.key(0)

    def ours_call(l2=l2):
        return trak.attribute(
            model, [(params, stats)], (x[:n], y[:n]), (x[n:], y[n:]), key, l2=l2, dim=dim,
            projection="normal", hessian=False,
        )[..., 0]  # fmt: skip

    net = network(kind, params, stats).eval()
    tx = torch.tensor(x) if kind == "mlp" else torch_images.images(x, torch.contiguous_format)
    ty = torch.tensor(y.astype(np.int64))
    arguments = (tx[:n], ty[:n], tx[n:], ty[n:])
    # With our projection the scores are the same.
    order = dattri_trak.order_of_parameters(lambda p: network(kind, p, stats), params)
    identity = jnp.eye(len(order), dtype=jnp.float32)
    own_key = keys.fold(key, 0)
    matrix = torch.tensor(np.asarray(trak.project(identity, own_key, dim, "normal"))[order])
    phi = trak.features(model, params, stats, x[:n], y[:n], own_key, dim=dim, projection="normal")
    absolute = l2 * float(np.square(phi.astype(np.float64)).sum()) / dim
    torch.set_num_threads(mesh.cores())
    theirs = dattri_trak.attributor(net, dim, absolute, lambda grads: grads @ matrix)(*arguments)
    mine = ours_call()
    gap = agree("TRAK", mine / np.abs(mine).max(), theirs / np.abs(mine).max(), 1e-3)

    def peer_call(threads, batch):
        torch.set_num_threads(threads)
        return dattri_trak.attributor(net, dim, absolute, batch=batch)(*arguments)

    trials = {
        f"{threads} threads, batch {batch}": functools.partial(peer_call, threads, batch)
        for threads in sorted({1, mesh.cores()})
        for batch in (64, 400)
    }
    peer = best_of(trials, repeats=3)
    ours = measure(ours_call, repeats=5)
    what = {"mlp": "MLP (64-64-10)", "cnn": "small CNN (16x16x3)"}[kind]
    name = f"TRAK, {what}, {n} x {len(x) - n} points, {len(order):,} parameters to {dim}"
    return Row(name, ours, peer, "dattri", gap, 1.0)


def rows():
    """The rows of the table."""
    yield _ulira()
    yield _matching("mlp", 8.0)
    yield _matching("cnn", 0.8)
    yield _trak("mlp")
    yield _trak("cnn")
    yield from _growth()
    yield from _regression()
