"""RoTTA's memory: a bounded choice of past images, balanced over predicted classes.

Its slots hold numbers of images in a table (those of the memory before a batch, then the batch), so
that going through a batch image by image moves no images.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.tta import masked


class Memory(NamedTuple):
    """The slots, leading axis M; a slot that is not filled stays in no class.

    Attributes:
        image: number of the image in the table.
        label: predicted class.
        uncertainty: entropy of the prediction, over ln K.
        age: images that came since, 1 for the newest.
        filled: whether the slot holds an image.
    """

    image: jax.Array
    label: jax.Array
    uncertainty: jax.Array
    age: jax.Array
    filled: jax.Array


class Instance(NamedTuple):
    """An image that came: its number in the table, predicted class and entropy over ln K."""

    image: jax.Array
    label: jax.Array
    uncertainty: jax.Array


def empty(size: int) -> Memory:
    """A memory of so many slots."""
    whole = jnp.zeros(size, jnp.int32)
    return Memory(whole, whole, jnp.zeros(size), whole, jnp.zeros(size, bool))


def add(memory: Memory, new: Instance, n_classes: int, lambda_t: float, lambda_u: float) -> Memory:
    """The memory after an image came (RoTTA, section 3.2).

    It enters where its class has less than its share of the slots and one is free. Else it takes
    the place of the image of the highest score, lambda_t / (1 + exp(-age / M)) + lambda_u
    uncertainty, if that is above its own: among its class where that has its share, and among the
    classes with most images elsewhere. All images become older by one.
    """
    size = len(memory.filled)
    of_class = jax.nn.one_hot(memory.label, n_classes, dtype=jnp.int32) * memory.filled[:, None]
    counts = jnp.sum(of_class, axis=0)
    has_room = counts[new.label] < size / n_classes
    is_free = has_room & (jnp.sum(counts) < size)
    is_candidate = jnp.where(
        has_room, counts[memory.label] == jnp.max(counts), memory.label == new.label
    )
    score = lambda age, unsure: lambda_t * jax.nn.sigmoid(age / size) + lambda_u * unsure  # noqa: E731
    scores = jnp.where(
        is_candidate & memory.filled, score(memory.age, memory.uncertainty), -jnp.inf
    )
    worst = _last_of_the_largest(scores, memory)
    enters = is_free | (scores[worst] > score(0, new.uncertainty))
    slot = jnp.where(is_free, jnp.argmin(memory.filled), worst)
    entry = (*new, jnp.zeros((), jnp.int32), jnp.ones((), bool))
    written = Memory(*(x.at[slot].set(value) for x, value in zip(memory, entry, strict=True)))
    memory = masked.where(enters, written, memory)
    return memory._replace(age=memory.age + memory.filled)


def _last_of_the_largest(scores: jax.Array, memory: Memory) -> jax.Array:
    """The slot of the largest score; of several that of the last class, there the newest."""
    is_largest = scores == jnp.max(scores)
    label = jnp.where(is_largest, memory.label, -1)
    is_last = is_largest & (label == jnp.max(label))
    return jnp.argmin(jnp.where(is_last, memory.age, jnp.iinfo(jnp.int32).max))
