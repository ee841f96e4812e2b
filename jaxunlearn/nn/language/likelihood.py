"""What a language model says of given responses: one forward pass, the output layer in chunks.

A batch of sequences is anything with `tokens` int32 [B, T], `where` int32 [B, R] (the positions
whose logits predict the response's tokens) and `labels` int32 [B, R] (these tokens, -1 at padding),
such as `data.text.Sequences`. With `positions` and `segments` too a row holds several texts
(`data.text.PromptTree`, `Packed`); without `where` a label belongs to each position. Only those R
positions reach the output layer, which is the largest layer of a small model, and never more logits
than a chunk's exist at once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxunlearn.core import products
from jaxunlearn.core.adapters import LowRank
from jaxunlearn.core.model import Model
from jaxunlearn.core.tree import Tree
from jaxunlearn.nn.language.decoder import head

_LOGITS = 2**24  # of one chunk: 64 MiB in float32


class Sequences(Protocol):
    """See the module's docstring."""

    @property
    def tokens(self) -> jax.Array:
        """Token numbers, int [B, T]."""
        ...

    @property
    def labels(self) -> jax.Array:
        """The tokens of the response, -1 at padding, int [B, R]."""
        ...


class TokenStats(NamedTuple):
    """What metrics of a response need, per token, float32 or bool [B, R]; see `token_stats`.

    Attributes:
        logp: log-probability of the token.
        hit: whether it is the most likely one.
        mean: mean of the log-probabilities under the distribution of the model.
        variance: variance of the log-probabilities, likewise.
        valid: whether there is a token (False: padding, where the others are 0).
    """

    logp: jax.Array
    hit: jax.Array
    mean: jax.Array
    variance: jax.Array
    valid: jax.Array


def response_hidden(model: Model, params: Tree, batch: Sequences, **static: Any) -> jax.Array:
    """Hidden states that predict the response, [B, R, D]; `static` goes to `model.apply`."""
    rows = {name: getattr(batch, name, None) for name in ("positions", "segments")}
    hidden, _ = model.apply(params, {}, batch.tokens, return_hidden=True, **rows, **static)
    where = getattr(batch, "where", None)
    return hidden if where is None else jnp.take_along_axis(hidden, where[..., None], axis=1)


def response_logits(model: Model, params: Tree, batch: Sequences) -> jax.Array:
    """Logits that predict the response, float32 [B, R, V]; all of them at once."""
    return head(params, response_hidden(model, params, batch))


def token_nll(model: Model, params: Tree, batch: Sequences, **static: Any) -> jax.Array:
    """-log p of every response token, float32 [B, R]; 0 at padding."""
    return nll_and_hidden(model, params, batch, **static)[0]


def nll_and_hidden(
    model: Model, params: Tree, batch: Sequences, **static: Any
) -> tuple[jax.Array, jax.Array]:
    """`token_nll` [B, R] and the hidden states [B, R, D] that it comes from."""
    hidden = response_hidden(model, params, batch, **static)
    labels = batch.labels
    nll = chunked_nll(_output_weights(params), hidden.reshape(-1, hidden.shape[-1]), labels.ravel())
    return jnp.where(labels >= 0, nll.reshape(labels.shape), 0.0), hidden


def sequence_nll(model: Model, params: Tree, batch: Sequences, **static: Any) -> jax.Array:
    """-log p of every response, summed over its tokens, float32 [B]."""
    return jnp.sum(token_nll(model, params, batch, **static), axis=-1)


def token_stats(model: Model, params: Tree, batch: Sequences) -> TokenStats:
    """Everything that likelihood metrics need, from one forward pass; not for gradients."""
    hidden = response_hidden(model, params, batch)
    weights, shape = _output_weights(params), batch.labels.shape

    def chunk(hidden: jax.Array, labels: jax.Array) -> tuple[jax.Array, ...]:
        logits = _logits(weights, hidden)
        logp = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        p = jnp.exp(logp)
        mean = jnp.sum(p * logp, axis=-1)
        variance = jnp.sum(p * jnp.square(logp - mean[:, None]), axis=-1)
        of_labels = jnp.take_along_axis(logp, jnp.maximum(labels, 0)[:, None], axis=-1)[:, 0]
        return of_labels, jnp.argmax(logits, axis=-1) == labels, mean, variance

    rows = hidden.reshape(-1, hidden.shape[-1])
    parts = _over_chunks(chunk, weights.shape[0], rows, batch.labels.ravel())
    valid = batch.labels >= 0
    logp, hit, mean, variance = (part.reshape(shape) for part in parts)
    logp, mean, variance = (jnp.where(valid, part, 0.0) for part in (logp, mean, variance))
    return TokenStats(logp, hit & valid, mean, variance, valid)


@jax.custom_vjp
def chunked_nll(weights: jax.Array, hidden: jax.Array, labels: jax.Array) -> jax.Array:
    """-log softmax(hidden weights^T)[label], never holding more logits than a chunk's.

    Under differentiation the forward pass computes, beside the loss, what the gradient of `hidden`
    needs (`softmax weights - weights[label]`, of the size of `hidden`), so that nothing is computed
    twice as long as the output layer is frozen. Its own gradient, where one is asked for, computes
    the logits once more, unless there is one chunk.

    Args:
        weights: the output layer, [V, D].
        hidden: [N, D].
        labels: int [N]; the value at a negative one is that of label 0.

    Returns:
        float32 [N].
    """

    def chunk(hidden: jax.Array, labels: jax.Array) -> jax.Array:
        logits = _logits(weights, hidden)
        of_labels = jnp.take_along_axis(logits, jnp.maximum(labels, 0)[:, None], axis=-1)[:, 0]
        return jax.nn.logsumexp(logits, axis=-1) - of_labels

    return _over_chunks(chunk, weights.shape[0], hidden, labels)


def _nll_forward(weights: Any, hidden: Any, labels: Any) -> tuple[jax.Array, Any]:
    trains_weights, w, h, y = weights.perturbed, weights.value, hidden.value, labels.value

    def chunk(hidden: jax.Array, labels: jax.Array) -> tuple[jax.Array, ...]:
        logits, labels = _logits(w, hidden), jnp.maximum(labels, 0)
        of_labels = jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
        log_z = jax.nn.logsumexp(logits, axis=-1)
        p = jnp.exp(logits - log_z[:, None])
        slope = (p.astype(w.dtype) @ w - w[labels]).astype(hidden.dtype)
        return log_z - of_labels, slope, log_z, p

    if trains_weights and _n_chunks(h.shape[0], w.shape[0]) == 1:
        nll, slope, log_z, p = chunk(h, y)  # one chunk's probabilities may be kept
    else:
        nll, slope, log_z = _over_chunks(lambda *rows: chunk(*rows)[:3], w.shape[0], h, y)
        p = None
    return nll, (slope, (w, h, y, log_z, p) if trains_weights else None, jnp.zeros((0,), w.dtype))


def _nll_backward(kept: Any, g: jax.Array) -> tuple[Any, jax.Array, None]:
    slope, inputs, like = kept
    d_hidden = (g[:, None] * slope).astype(slope.dtype)
    if inputs is None:
        return None, d_hidden, None
    w, h, y, log_z, p = inputs

    def chunk(hidden: jax.Array, log_z: jax.Array, g: jax.Array) -> jax.Array:
        probabilities = jnp.exp(_logits(w, hidden) - log_z[:, None]) if p is None else p
        return products.over_rows(hidden.astype(jnp.float32), g[:, None] * probabilities)

    total = jnp.zeros(w.shape[::-1], jnp.float32)
    total = _over_chunks(chunk, w.shape[0], h, log_z, g, total=total)
    of_labels = g[:, None] * h.astype(jnp.float32)
    d_weights = total.T.at[jnp.maximum(y, 0)].add(-of_labels)
    return d_weights.astype(like.dtype), d_hidden, None


chunked_nll.defvjp(_nll_forward, _nll_backward, symbolic_zeros=True)


@jax.custom_vjp
def chunked_kl(weights: jax.Array, hidden: jax.Array, reference: jax.Array) -> jax.Array:
    """KL(reference || model) of next-token distributions, from hidden states, in chunks.

    Both share the output layer, which must be frozen. As in `chunked_nll` the forward pass computes
    what the gradient needs.

    Args:
        weights: the output layer, [V, D].
        hidden: hidden states of the model, [N, D].
        reference: those of the model before unlearning, [N, D]; a constant.

    Returns:
        float32 [N].
    """
    return _kl_and_slope(weights, hidden, reference)[0]


def _kl_and_slope(w: jax.Array, hidden: jax.Array, reference: jax.Array):
    def chunk(hidden: jax.Array, reference: jax.Array) -> tuple[jax.Array, jax.Array]:
        log_p, log_q = (jax.nn.log_softmax(_logits(w, x)) for x in (hidden, reference))
        p, q = jnp.exp(log_p), jnp.exp(log_q)
        slope = ((p - q).astype(w.dtype) @ w).astype(hidden.dtype)
        return jnp.sum(q * (log_q - log_p), axis=-1), slope

    return _over_chunks(chunk, 2 * w.shape[0], hidden, reference)


def _kl_forward(weights: Any, hidden: Any, reference: Any) -> tuple[jax.Array, jax.Array]:
    if weights.perturbed:
        raise ValueError("chunked_kl: the output layer trains; only a frozen one is allowed")
    return _kl_and_slope(weights.value, hidden.value, reference.value)


def _kl_backward(slope: jax.Array, g: jax.Array) -> tuple[None, jax.Array, None]:
    return None, (g[:, None] * slope).astype(slope.dtype), None


chunked_kl.defvjp(_kl_forward, _kl_backward, symbolic_zeros=True)


def mean_kl(params: Tree, hidden: jax.Array, reference: jax.Array, mask: jax.Array) -> jax.Array:
    """KL(reference || model), the mean over a mask: hidden states [B, R, D], bool [B, R] -> []."""
    width = hidden.shape[-1]
    rows = (x.reshape(-1, width) for x in (hidden, reference))
    kl = chunked_kl(_output_weights(params), *rows).reshape(mask.shape)
    return jnp.sum(jnp.where(mask, kl, 0)) / jnp.maximum(jnp.sum(mask), 1)


def _output_weights(params: Tree) -> jax.Array:
    """The output layer as [V, D]."""
    if "head" not in params:
        return params["embed"]["table"]
    kernel = params["head"]["kernel"]
    return (kernel.dense() if isinstance(kernel, LowRank) else kernel).T


def _logits(weights: jax.Array, hidden: jax.Array) -> jax.Array:
    table = weights.astype(hidden.dtype)
    return jnp.einsum("nd,vd->nv", hidden, table, preferred_element_type=jnp.float32)


def _n_chunks(n: int, vocabulary: int) -> int:
    return max(1, -(-n * vocabulary // _LOGITS))


def _over_chunks(
    function: Callable, vocabulary: int, *rows: jax.Array, total: jax.Array | None = None
) -> Any:
    """`function` of chunks of rows [N, ...], its results joined, or summed onto `total`."""
    n = rows[0].shape[0]
    n_chunks = _n_chunks(n, vocabulary)
    if n_chunks == 1:
        return function(*rows) if total is None else total + function(*rows)
    size = -(-n // n_chunks)
    pad = size * n_chunks - n
    chunks = tuple(
        jnp.pad(x, ((0, pad), *((0, 0),) * (x.ndim - 1))).reshape(n_chunks, size, *x.shape[1:])
        for x in rows
    )
    if total is not None:
        return jax.lax.scan(lambda sum_, chunk: (sum_ + function(*chunk), None), total, chunks)[0]
    results = jax.lax.map(lambda chunk: function(*chunk), chunks)
    return jax.tree.map(lambda x: x.reshape(size * n_chunks, *x.shape[2:])[:n], results)
