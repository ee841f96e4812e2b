"""Run by test_mesh.py in its own process: a step of a language model on several meshes."""

import dataclasses
import json
import sys
from pathlib import Path

from jaxunlearn.core import mesh

mesh.start(4)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

from jaxunlearn import paths  # noqa: E402
from jaxunlearn.core import adapters, step, tree  # noqa: E402
from jaxunlearn.data import text  # noqa: E402
from jaxunlearn.nn.language import decoder, likelihood  # noqa: E402
from jaxunlearn.unlearn import (  # noqa: E402
    language_objectives,
    objectives,
)
from tests import language as tiny  # noqa: E402

KEY = jax.random.key(0)
folder = tiny.save(Path(sys.argv[1]))
whole = decoder.from_pretrained(folder, dtype=jnp.float32)
questions = text.refusals(8)
rows = text.encode(whole.tokenizer, questions, template=text.TEMPLATES["chatml"], max_tokens=200)
reference = language_objectives.reference_nll(
    whole.model, whole.params, jax.tree.map(jnp.asarray, rows)
)
losses = {"ga": language_objectives.LOCAL["ga"], "npo": language_objectives.LOCAL["npo"]}


def update(loss, shape):
    """What one step adds to the adapters, on a mesh of this shape."""
    devices = mesh.make(dict(zip(("data", "model"), shape, strict=True)))
    read = decoder.from_pretrained(folder, dtype=jnp.float32, mesh=devices)
    params = adapters.attach(read.params, paths.settings.LORA_TARGETS, 2, 4.0, KEY)
    # Fresh adapters only train one of their matrices in the first step.
    params = jax.tree.map(
        lambda leaf: leaf + 0.01 if leaf.ndim == 3 and not leaf.any() else leaf, params
    )
    params = jax.device_put(params, decoder.shardings(params, devices))
    own, base = adapters.split(params)
    split = jax.NamedSharding(devices, P("data"))
    batch = jax.device_put({"sequences": rows, "ref_nll": reference}, split)
    optimizer = optax.sgd(1.0)
    objective = language_objectives.on_base(
        language_objectives.forgetting(read.model, losses[loss])
    )
    take = jax.jit(step.gradient_step(objective, optimizer))
    after, _ = take(step.init_state(own, optimizer), base, batch, KEY)
    moved = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), after.params, own)
    n_parts = len(read.params["layers"]["gate"]["kernel"].sharding.device_set)
    shard = read.params["layers"]["gate"]["kernel"].addressable_shards[0].data.size
    return tree.named(moved), {"devices": n_parts, "shard": shard}


def gap(one, other):
    """The length of the difference of two steps, relative to that of a step."""
    of = lambda step: np.sqrt(sum(np.square(leaf, dtype=float).sum() for leaf in step.values()))  # noqa: E731
    return float(of({name: one[name] - other[name] for name in one}) / of(one))


def meshes(loss):
    """Steps on three meshes, and how the network lay on them."""
    alone, _ = update(loss, (1, 1))
    for shape in ((2, 2), (4, 1)):
        moved, layout = update(loss, shape)
        result[f"{loss} {shape[0]}x{shape[1]}"] = {"gap": gap(alone, moved)} | layout
    result["whole"] = whole.params["layers"]["gate"]["kernel"].size


def micro_batches():
    """Micro-batches of a step: sums over the whole batch's counts."""
    model, data = whole.model, jax.tree.map(jnp.asarray, rows)
    tokens = data.lengths.sum()

    def ascent(params, part):
        nll = likelihood.sequence_nll(model, params, part)
        return objectives.ascent(nll, part.lengths, denominator=tokens)

    def npo(params, part):
        nll = likelihood.sequence_nll(model, params, part["rows"])
        return objectives.npo(nll, part["ref"] + 0.5, beta=0.5, denominator=8)

    for name, loss, batch in (("ga", ascent, data), ("npo", npo, {"rows": data, "ref": reference})):
        at_once = jax.jit(jax.grad(loss))(whole.params, batch)
        for size in (1, 2, 4):
            parts = jax.tree.map(lambda x, n=size: x.reshape(8 // n, n, *x.shape[1:]), batch)
            _, summed = jax.jit(objectives.accumulate, static_argnums=0)(loss, whole.params, parts)
            result[f"{name} by {size}"] = {
                "gap": gap(
                    *(
                        {n: np.asarray(x) for n, x in tree.named(g).items()}
                        for g in (at_once, summed)
                    )
                )
            }


def whole_study():
    """A study whose network is split over two devices, against one on a single device."""
    study = paths.Settings(
        model=str(folder),
        stages=("a=compliance:C,n=4", "u=refusals,n=4"),
        forget="u",
        losses=("ga",),
        rank=2,
        alpha=4.0,
        learning_rate=1e-3,
        batch_size=2,
        unlearn_batch_size=2,
        unlearn_learning_rate=1e-3,
        max_tokens=200,
        probe=2,
    )
    scores = []
    for shards in (1, 2):
        own = dataclasses.replace(study, model_shards=shards)
        out = Path(sys.argv[1]) / f"study-{shards}"
        done = paths.run(own, out=out, mesh=paths.devices(own, 2))
        scores.append(done["losses"]["ga"])
    result["study"] = [np.ravel(of_one["answer_logp"]["u"]).tolist() for of_one in scores]


result: dict = {}
if sys.argv[2] == "steps":
    meshes("ga")
    micro_batches()
else:
    meshes("npo")
    whole_study()
print(json.dumps(result))
