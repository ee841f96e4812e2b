"""Text from a language model, a token at a time with the cache, as one compiled program."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxunlearn.core import checks
from jaxunlearn.core.keys import Key, fold
from jaxunlearn.core.tree import Tree
from jaxunlearn.nn.language.decoder import Config, decoder, head, init_cache

_GREEDY_BELOW = 1e-5  # of temperatures, as in vLLM


def generate(
    config: Config,
    params: Tree,
    tokens: jax.Array | np.ndarray,
    mask: jax.Array | np.ndarray,
    n_tokens: int,
    *,
    key: Key | None = None,
    temperature: float | np.float32 | jax.Array = 1.0,
    pad: int = 0,
) -> jax.Array:
    """Continues prompts; compiled once for each set of shapes.

    Args:
        config: sizes of the network.
        params: its weights.
        tokens: prompts padded on the left, int32 [B, T].
        mask: bool [B, T], True at real tokens.
        n_tokens: number of new tokens; T + n_tokens fit the context.
        key: a typed key for sampling; None takes the most likely token.
        temperature: divides the logits when sampling, >= 0; below 1e-5, as in vLLM, the most
            likely token is taken.
        pad: token after the one that ends the text (`config.eos`); `before_end` leaves both out.

    Returns:
        int32 [B, n_tokens], with `pad` after an ending token. Row b draws with the key folded by b
        and the step: other rows do not change it.

    Raises:
        ValueError: the context is too short, a temperature that is negative, infinite or no number,
            or a real token that the network does not know (both where they are not traced).
    """
    if n_tokens < 1:
        raise ValueError(f"n_tokens is {n_tokens}; it must be at least 1")
    checks.temperature("temperature", temperature, zero=True)
    if not isinstance(temperature, Tracer):
        temperature = np.float32(temperature)  # one type, one program
    _check_tokens(config, tokens, mask)
    return _generate(config, params, tokens, mask, n_tokens, key, temperature, pad)


def _check_tokens(config: Config, tokens: Any, mask: Any) -> None:
    """Raises where a real token is unknown; JAX would read another one's embedding in silence."""
    if isinstance(tokens, Tracer) or isinstance(mask, Tracer) or tokens.shape != mask.shape:
        return  # what does not fit is named below
    real = np.asarray(tokens)[np.asarray(mask, bool)]
    if real.size and not 0 <= real.min() <= real.max() < config.vocabulary:
        raise ValueError(
            f"tokens are {real.min()} to {real.max()}; the network knows 0 to "
            f"{config.vocabulary - 1}"
        )


def before_end(config: Config, tokens: Any) -> list[list[int]]:
    """What was generated in each row [B, n_tokens] before the first token that ends the text.

    Neither that token nor the padding after it is text.
    """
    rows = np.asarray(tokens)
    ended = np.isin(rows, config.eos)
    lengths = np.where(ended.any(1), ended.argmax(1), rows.shape[1])
    return [row[:length].tolist() for row, length in zip(rows, lengths, strict=True)]


@functools.partial(jax.jit, static_argnames=("config", "n_tokens", "pad"))
def _generate(
    config: Config,
    params: Tree,
    tokens: jax.Array,
    mask: jax.Array,
    n_tokens: int,
    key: Key | None,
    temperature: np.float32 | jax.Array,
    pad: int,
) -> jax.Array:
    model, (batch, length) = decoder(config), tokens.shape
    dtype = params["embed"]["table"].dtype
    cache = init_cache(config, batch, length + n_tokens, dtype)
    ends = jnp.asarray(config.eos or (-1,), jnp.int32)

    def choose(logits: jax.Array, step: Any) -> jax.Array:
        likeliest = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        if key is None:
            return likeliest
        row_keys = jax.vmap(fold, (None, 0, None))(key, jnp.arange(batch), step)
        is_greedy = temperature < _GREEDY_BELOW
        scaled = logits / jnp.where(is_greedy, 1.0, temperature)
        drawn = jax.vmap(jax.random.categorical)(row_keys, scaled).astype(jnp.int32)
        return jnp.where(is_greedy, likeliest, drawn)

    (hidden, cache), _ = model.apply(
        params, {}, tokens, None, mask, cache=cache, return_hidden=True
    )
    first = choose(head(params, hidden[:, -1]), 0)

    def step(carry, number):
        token, done, cache = carry
        done = done | jnp.isin(token, ends)
        (hidden, cache), _ = model.apply(
            params, {}, token[:, None], cache=cache, return_hidden=True
        )
        following = jnp.where(done, pad, choose(head(params, hidden[:, -1]), number))
        return (following, done, cache), following

    start = (first, jnp.zeros(batch, bool), cache)
    _, rest = jax.lax.scan(step, start, jnp.arange(1, n_tokens))
    return jnp.concatenate([first[:, None], rest.T], axis=1)
