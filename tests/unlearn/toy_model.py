"""A toy language model whose logits are features @ parameters, and batches of it."""

from typing import NamedTuple

import jax
import numpy as np

from jaxunlearn.core import losses
from jaxunlearn.unlearn import objectives as obj

B, R, V, D = 8, 5, 7, 4
LENGTHS = np.array([5, 0, 3, 1, 4, 0, 2, 5])  # two responses are empty
VALID = np.arange(R) < LENGTHS[:, None]
FEATURES, REF_PARAMS, PARAMS = (
    np.asarray(jax.random.normal(jax.random.key(seed), shape))
    for seed, shape in enumerate([(2, B, R, D), (D, V), (D, V)])
)
LOGITS, REF_LOGITS = FEATURES[0] @ PARAMS, FEATURES[0] @ REF_PARAMS
LABELS = np.asarray(jax.random.randint(jax.random.key(3), (2, B, R), 0, V))
CONTROL = np.asarray(obj.control_vector(jax.random.key(4), V, 3.0))


def batch_of(side):
    """A batch; side 0 is to forget."""
    return {
        "x": FEATURES[side],
        "y": LABELS[side],
        "valid": VALID,
        "ref": FEATURES[side] @ REF_PARAMS,
    }


class Measured(NamedTuple):
    """Of one batch; the NLLs are summed."""

    logits: jax.Array
    token_nll: jax.Array
    nll: jax.Array
    ref_nll: jax.Array
    lengths: jax.Array


def measured(params, batch):
    logits = batch["x"] @ params
    token = losses.cross_entropy(logits, batch["y"])
    ref_token = losses.cross_entropy(batch["ref"], batch["y"])
    total, ref_total = ((t * batch["valid"]).sum(1) for t in (token, ref_token))
    return Measured(logits, token, total, ref_total, batch["valid"].sum(1))
