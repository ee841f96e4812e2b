"""The results of a path study, from what was measured of its models."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core import adapters, keys, tree
from jaxunlearn.core.run_folder import Progress
from jaxunlearn.core.tree import Tree
from jaxunlearn.evaluate import paths as measures
from jaxunlearn.nn.language.decoder import head
from jaxunlearn.nn.language.generation import before_end, generate
from jaxunlearn.paths import forgetting
from jaxunlearn.paths.job import Job
from jaxunlearn.paths.measures import measure

_POSITIONS = 512  # of the retain answers, at which outputs of models are compared
_SAMPLED_TOKENS = 160  # of an answer to a GSM8K question


def report(
    job: Job, paths: dict[tuple[str, ...], Tree], runs: dict[str, Any], progress: Progress
) -> dict[str, Any]:
    """Everything that a study shows, JSON-like.

    Args:
        job: the study.
        paths: adapters of every order, and of those without the forget stage, leading axis seeds.
        runs: result of `forgetting.forget`.
        progress: called as models have answered.
    """
    s, shape = job.settings, (len(job.orders), len(job.settings.losses), job.settings.seeds)
    measured = {
        name: value.reshape(*shape, *value.shape[1:])
        for name, value in tree.named(runs["measured"]).items()
    }
    retrained = _retrained(job, paths)
    n_steps = runs["losses"].shape[1]
    results = {
        "orders": [list(order) for order in job.orders],
        "forget": s.forget,
        "stage_runs": len(job.prefixes),
        "checks": [*range(0, n_steps, s.every), n_steps],
        "losses": {},
    }
    for number, loss in enumerate(s.losses):
        of_loss = {name: value[:, number] for name, value in measured.items()}
        results["losses"][loss] = _of_loss(job, of_loss, retrained)
    if s.attempts:
        results["accuracy"] = _accuracies(job, paths, runs, progress)
    return results | {"seconds": job.folder.seconds} | job.record


def _of_loss(job: Job, measured: dict[str, np.ndarray], retrained: dict) -> dict[str, Any]:
    """The results of one loss; what is measured has leading axes paths, seeds, checks."""
    s = job.settings
    lengths = {name: np.asarray(p.lengths) for name, p in job.probes.responses.items()}
    logp = {name: -measured[f"nll/{name}"] / lengths[name] for name in lengths}
    label = measured["phrases"] if "phrases" in measured else logp[s.forget][..., None]
    n_paths, n_seeds = label.shape[:2]

    def of_each(function: Callable[..., Any], values: np.ndarray) -> list[list[Any]]:
        """A function of what was measured before and after, for each path and seed."""
        return [[function(of_seed[0], of_seed[-1]) for of_seed in path] for path in values]

    scores = np.array(of_each(lambda *ends: measures.forget_score(*ends).score, label))
    out: dict[str, Any] = {
        "forget_score": scores.tolist(),
        "label_logp": label.mean((-1, -2)).tolist(),
        "answer_logp": {name: value.mean(-1).tolist() for name, value in logp.items()},
        "utility": {
            name: of_each(measures.tofu_utility, value)
            for name, value in logp.items()
            if name != s.forget
        },
        "recency": [_recency(scores[:, i]) for i in range(n_seeds)],
    }
    out |= _divergences(job, measured, retrained)
    if {"C", "U", "R"} == set(job.parts) and s.forget == "U":
        summed = {name: -measured[f"nll/{name}"].mean(1) for name in "CUR"}  # over seeds
        out["forgetting"] = [
            measures.deep_or_superficial(*(summed[name][p] for name in "CUR"))
            for p in range(n_paths)
        ]
    return out


def _recency(scores: np.ndarray) -> dict[str, Any]:
    """The slowest path, and the second smallest score over its own (None if that is not > 0)."""
    slowest, ratio = measures.recency(scores)
    return {"slowest": slowest, "ratio": ratio if np.isfinite(ratio) else None}


def _divergences(job: Job, measured: dict[str, np.ndarray], retrained: dict) -> dict[str, Any]:
    """Distances of outputs at retain answers: between paths, and of each to its retrained model."""
    weights = job.pretrained.params
    n_paths, n_seeds, n_checks = measured["nll/" + job.settings.forget].shape[:3]
    hidden = _positions(job, {name: value for name, value in measured.items() if "hidden/" in name})
    jeffreys = np.zeros((n_checks, n_seeds, n_paths, n_paths))
    distance, to_retrained = np.zeros_like(jeffreys), np.zeros((n_checks, n_seeds, n_paths))
    jeffreys_to_retrained = np.zeros_like(to_retrained)
    references = list(dict.fromkeys(map(job.retrained, job.orders)))
    reference_of = [n_paths + references.index(job.retrained(order)) for order in job.orders]
    for check, seed in itertools.product(range(n_checks), range(n_seeds)):
        models = [*hidden[:, seed, check], *(retrained[order][seed] for order in references)]
        j, d = (np.asarray(x, np.float64) for x in pairwise(weights, jnp.stack(models)))
        jeffreys[check, seed], distance[check, seed] = j[:n_paths, :n_paths], d[:n_paths, :n_paths]
        to_retrained[check, seed] = d[np.arange(n_paths), reference_of]
        jeffreys_to_retrained[check, seed] = j[np.arange(n_paths), reference_of]
    return {
        "jeffreys": jeffreys.tolist(),
        "logit_distance": distance.tolist(),
        "distance_to_retrained": to_retrained.tolist(),
        "jeffreys_to_retrained": jeffreys_to_retrained.tolist(),
    }


@jax.jit
def pairwise(params: Tree, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Jeffreys divergences and squared logit distances of every pair of models.

    Args:
        params: with the output layer, which all models share.
        hidden: hidden states of M models at the same N positions, [M, N, D].

    Returns:
        Means over positions, float32 [M, M] each.
    """

    def at(hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = head(params, hidden)
        log_p = jax.nn.log_softmax(logits)
        p = jnp.exp(log_p)

        def against(q: jax.Array) -> tuple[jax.Array, jax.Array]:
            j = 0.5 * jnp.sum((p - p[q]) * (log_p - log_p[q]), axis=-1)
            return j, jnp.sum(jnp.square(logits - logits[q]), axis=-1)

        return jax.lax.map(against, jnp.arange(hidden.shape[0]))

    jeffreys, distance = jax.lax.map(at, hidden.swapaxes(0, 1))
    return jeffreys.mean(0), distance.mean(0)


def _positions(job: Job, hidden: dict[str, np.ndarray]) -> np.ndarray:
    """Hidden states [..., N, D] at some positions of all retain answers, evenly spaced."""
    parts = []
    for name, probe in job.probes.responses.items():
        if name == job.settings.forget:
            continue
        value, valid = hidden[f"hidden/{name}"], np.asarray(probe.labels) >= 0
        parts.append(value[..., valid, :])
    joined = np.concatenate(parts, axis=-2)
    n = joined.shape[-2]
    return joined[..., np.unique(np.linspace(0, n - 1, min(n, _POSITIONS)).astype(int)), :]


def _retrained(job: Job, paths: dict[tuple[str, ...], Tree]) -> dict[tuple[str, ...], np.ndarray]:
    """Hidden states of the models that never saw the forget set, [seeds, N, D], by order."""
    frozen, probes = forgetting.frozen_part(job), jax.tree.map(jnp.asarray, job.probes)
    measured = jax.jit(functools.partial(measure, job.pretrained.model))

    def hidden(order: tuple[str, ...], seed: int) -> np.ndarray:
        params = tree.combine(tree.take(paths[order], seed), frozen)
        return _positions(job, jax.device_get(measured(params, probes)))

    orders, seeds = dict.fromkeys(map(job.retrained, job.orders)), range(job.settings.seeds)
    return {order: np.stack([hidden(order, seed) for seed in seeds]) for order in orders}


def _accuracies(
    job: Job, paths: dict[tuple[str, ...], Tree], runs: dict[str, Any], progress: Progress
) -> Any:
    """Accuracy on GSM8K questions by sampling, before unlearning and after, per path.

    Written down model by model: a killed study goes on with the next.
    """
    s, frozen = job.settings, forgetting.frozen_part(job)
    store, numbers = job.folder.lanes("answers"), itertools.count()
    total = len(paths) * s.seeds + len(job.members)

    def accuracy(params: Tree) -> dict[str, Any]:
        number = next(numbers)
        progress("evaluation", number, total)
        if number not in store:
            store.write(number, {"right": _right_answers(job, adapters.merge(params))})
        right = store.read(number)["right"]
        correct, n = int(right.sum()), len(right)
        interval = list(measures.accuracy_interval(correct, n))
        return {"correct": correct, "total": n, "accuracy": correct / n, "interval": interval}

    def trained(order: tuple[str, ...], seed: int) -> Tree:
        return tree.combine(tree.take(paths[order], seed), frozen)

    seeds = range(s.seeds)
    before = {"+".join(o): [accuracy(trained(o, seed)) for seed in seeds] for o in paths}
    after: dict[str, dict[str, list]] = {loss: {} for loss in s.losses}
    for number, (path, loss, seed) in enumerate(job.members):
        order = job.orders[path]
        with_fresh = forgetting.with_fresh(trained(order, seed), job, number)
        params = adapters.load(with_fresh, tree.take(runs["adapter"], number))
        after[s.losses[loss]].setdefault("+".join(order), []).append(accuracy(params))
    return {"before": before, "after": after}


def _right_answers(job: Job, params: Tree) -> np.ndarray:
    """Which of all attempts end with the right number, bool [attempts of all questions]."""
    s, decode = job.settings, job.pretrained.tokenizer.decode  # type: ignore[union-attr]
    right = []
    for prompts, mask, finals in job.sampled:
        room = min(_SAMPLED_TOKENS, job.pretrained.config.context - prompts.shape[1])
        for attempt in range(s.attempts):
            key = keys.fold(jax.random.key(s.seed), "attempt", attempt)
            tokens = generate(job.pretrained.config, params, prompts, mask, room, key=key)
            answers = before_end(job.pretrained.config, tokens)
            for answer, final in zip(answers, finals, strict=True):
                said = measures.gsm8k_answer(decode(answer))
                right.append(said is not None and said == float(final))
    return np.array(right)
