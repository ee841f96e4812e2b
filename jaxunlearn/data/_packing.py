"""Sequences with less padding: several in a row, or groups of about equal length."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxunlearn.data._sequences import Sequences, round_up

PREFIX = -1  # as `nn.decoder.PREFIX`


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """M rows of T tokens, each filled with whole examples.

    A token may attend to those before it that have its segment.

    Attributes:
        tokens: int32 [M, T]; 0 at padding.
        positions: int32 [M, T], counted from 0 within each example; 0 at padding.
        segments: int32 [M, T], 1, 2, .. for the examples of a row in their order; 0 at padding.
        labels: int32 [M, T], the token to be predicted at a position, the one after it, where that
            belongs to a response; -1 elsewhere.
        rows: int32 [M, S], which row of the `Sequences` is segment s + 1; -1 if there is none.
    """

    tokens: Any
    positions: Any
    segments: Any
    labels: Any
    rows: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PromptTree:
    """N prompts, each followed in its row by J responses that do not see each other.

    Attributes:
        tokens: int32 [N, T]; 0 at padding.
        positions: int32 [N, T]; every response goes on from its prompt.
        segments: int32 [N, T], -1 for the prompt, which all read, 1, 2, .. J for the responses, 0
            at padding.
        where: int32 [N, J R], the positions whose logits predict response j, at j R and after.
        labels: int32 [N, J R], the tokens of the responses; -1 at padding.
    """

    tokens: Any
    positions: Any
    segments: Any
    where: Any
    labels: Any


class Bucket(NamedTuple):
    """Sequences of about one length.

    Attributes:
        sequences: n of them, cut to a T and R of their own.
        rows: int64 [n], ascending, their rows in the whole.
    """

    sequences: Sequences
    rows: np.ndarray


def pack(sequences: Sequences, length: int) -> Packed:
    """Packs examples into rows: first-fit decreasing, the same result at every call.

    Longest first (of equal ones the earlier), each goes to the first row that has room for it.
    Every example lies in one row as a whole, and every token of a response is a label once.

    Args:
        sequences: N examples, as arrays on the host.
        length: T, the length of the rows.

    Raises:
        ValueError: an example is longer than that.
    """
    sequences = jax.tree.map(np.asarray, sequences)
    lengths = _lengths(sequences)
    if lengths.max() > length:
        raise ValueError(
            f"pack: length is {length}; row {lengths.argmax()} of the sequences has "
            f"{lengths.max()} tokens"
        )
    members = _first_fit(lengths, length)
    shape = (len(members), length)
    packed = Packed(
        *np.zeros((3, *shape), np.int32),
        labels=np.full(shape, -1, np.int32),
        rows=np.full((len(members), max(map(len, members))), -1, np.int32),
    )
    for m, rows in enumerate(members):
        packed.rows[m, : len(rows)] = rows
        start = 0
        for segment, row in enumerate(rows, 1):
            place = slice(start, start + lengths[row])
            packed.tokens[m, place] = sequences.tokens[row, : lengths[row]]
            packed.positions[m, place] = np.arange(lengths[row])
            packed.segments[m, place] = segment
            learned = sequences.labels[row] >= 0
            where = start + sequences.where[row, learned]
            packed.labels[m, where] = sequences.labels[row, learned]
            start = place.stop
    return packed


def tree(sequences: Sequences, n_responses: int) -> PromptTree:
    """Joins the J responses to each question (`encode_responses`) behind one copy of its prompt.

    A model gives each response the log-probability that it has alone, and reads the prompt once.

    Args:
        sequences: N J rows, response j to question n at n J + j.
        n_responses: J.

    Raises:
        ValueError: the rows are no multiple of J, or responses of one question with other prompts.
    """
    sequences = jax.tree.map(np.asarray, sequences)
    n_rows, n_labels = sequences.labels.shape
    if n_responses < 1 or n_rows % n_responses:
        raise ValueError(f"tree: {n_rows} rows are no multiple of n_responses = {n_responses}")
    prompts, lengths = sequences.where[:, 0] + 1, sequences.lengths
    groups = np.arange(n_rows).reshape(-1, n_responses)
    # The last token of a response predicts nothing that is asked for: it is left out.
    needed = prompts[groups[:, 0]] + (lengths - 1)[groups].sum(1)
    shape = (len(groups), round_up(int(needed.max()), 8))
    joined = PromptTree(
        *np.zeros((3, *shape), np.int32),
        where=np.zeros((len(groups), n_responses * n_labels), np.int32),
        labels=sequences.labels.reshape(len(groups), -1),
    )
    for n, rows in enumerate(groups):
        start = prompts[rows[0]]
        prompt = sequences.tokens[rows[0], :start]
        joined.tokens[n, :start], joined.positions[n, :start] = prompt, np.arange(start)
        joined.segments[n, :start] = PREFIX
        for j, row in enumerate(rows):
            if not np.array_equal(sequences.tokens[row, : prompts[row]], prompt):
                raise ValueError(f"tree: row {row} and row {rows[0]} have other prompts")
            place = slice(start, start + lengths[row] - 1)
            inside = slice(len(prompt), len(prompt) + lengths[row] - 1)
            joined.tokens[n, place] = sequences.tokens[row, inside]
            joined.positions[n, place] = np.arange(inside.start, inside.stop)
            joined.segments[n, place] = j + 1
            where = [len(prompt) - 1, *range(place.start, place.stop)]
            joined.where[n, j * n_labels : j * n_labels + lengths[row]] = where
            start = place.stop
    return joined


def buckets(sequences: Sequences, boundaries: Sequence[int], *, multiple: int = 8) -> list[Bucket]:
    """Splits sequences by their length, each group cut to what it needs.

    Results per sequence go back to their order by `whole[bucket.rows] = of_bucket`.

    Args:
        sequences: N examples, as arrays on the host.
        boundaries: ascending; a sequence goes to the first group whose boundary is at least its
            length in tokens. The last one covers the longest.
        multiple: T and R of each group are rounded up to multiples of it.

    Returns:
        The groups that have sequences, shortest first.

    Raises:
        ValueError: the boundaries do not ascend, or leave a sequence out.
    """
    sequences = jax.tree.map(np.asarray, sequences)
    lengths, edges = _lengths(sequences), np.asarray(boundaries)
    if edges.ndim != 1 or not len(edges) or (np.diff(edges) <= 0).any():
        raise ValueError(f"buckets: boundaries are {list(boundaries)}; they must ascend")
    if lengths.max() > edges[-1]:
        raise ValueError(
            f"buckets: boundaries are {list(boundaries)}; the longest sequence, row "
            f"{lengths.argmax()}, has {lengths.max()} tokens"
        )
    group = np.searchsorted(edges, lengths)
    groups = []
    for number in np.unique(group):
        rows = np.flatnonzero(group == number)
        width = round_up(int(lengths[rows].max()), multiple)  # cuts at T where T is shorter
        n = round_up(int(sequences.lengths[rows].max()), multiple)
        tokens, of_response = sequences.tokens[rows, :width], (rows, slice(n))
        cut = Sequences(tokens, sequences.where[of_response], sequences.labels[of_response])
        groups.append(Bucket(cut, rows))
    return groups


def _lengths(sequences: Sequences) -> np.ndarray:
    """Tokens up to the last of the response, int [N]; it is the one after the last in `where`."""
    return np.where(sequences.labels >= 0, sequences.where, 0).max(1) + 2


def _first_fit(lengths: np.ndarray, length: int) -> list[list[int]]:
    members: list[list[int]] = []
    room = np.full(len(lengths), length)  # of all rows that could be needed; an empty one fits
    for row in np.argsort(-lengths, kind="stable"):
        m = int(np.argmax(room[: len(members) + 1] >= lengths[row]))
        if m == len(members):
            members.append([])
        members[m].append(int(row))
        room[m] -= lengths[row]
    return members
