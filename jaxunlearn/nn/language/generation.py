"""Text from a language model, a token at a time with the cache, as one compiled program."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.core.keys import Key, fold
from jaxunlearn.core.tree import Tree
from jaxunlearn.nn.language.decoder import Config, decoder, head, init_cache


@functools.partial(jax.jit, static_argnames=("config", "n_tokens", "pad"))
def generate(
    config: Config,
    params: Tree,
    tokens: jax.Array,
    mask: jax.Array,
    n_tokens: int,
    *,
    key: Key | None = None,
    temperature: float | jax.Array = 1.0,
    pad: int = 0,
) -> jax.Array:
    """Continues prompts.

    Args:
        config: sizes of the network.
        params: its weights.
        tokens: prompts padded on the left, int32 [B, T].
        mask: bool [B, T], True at real tokens.
        n_tokens: number of new tokens; T + n_tokens fit the context.
        key: a typed key for sampling; None takes the most likely token.
        temperature: divides the logits when sampling, > 0.
        pad: token after the one that ends the text (`config.eos`).

    Returns:
        int32 [B, n_tokens], with `pad` after an ending token. Row b draws with the key folded by b
        and the step: other rows do not change it.

    Raises:
        ValueError: the context is too short.
    """
    model, (batch, length) = decoder(config), tokens.shape
    if n_tokens < 1:
        raise ValueError(f"n_tokens is {n_tokens}; it must be at least 1")
    dtype = params["embed"]["table"].dtype
    cache = init_cache(config, batch, length + n_tokens, dtype)
    ends = jnp.asarray(config.eos or (-1,), jnp.int32)

    def choose(logits: jax.Array, step: Any) -> jax.Array:
        if key is None:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        row_keys = jax.vmap(fold, (None, 0, None))(key, jnp.arange(batch), step)
        return jax.vmap(jax.random.categorical)(row_keys, logits / temperature).astype(jnp.int32)

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
