"""Deletion requests one by one in Python, without anything that could be left out."""

import random


def lifetimes(n_shards: int, needed: list[int], n_slices: int, n_streams: int) -> list[int]:
    """Requests until all shards are dead; `needed` are the first slices of each shard, as bits."""
    counts, total, draw = [], n_shards * n_slices, random.Random(0).randrange
    for _ in range(n_streams):
        deleted, alive, count = [0] * n_shards, n_shards, 0
        while alive:
            shard, slice_ = divmod(draw(total), n_slices)
            count += 1
            before = deleted[shard]
            if before & needed[shard] != needed[shard]:
                deleted[shard] = before | 1 << slice_
                if deleted[shard] & needed[shard] == needed[shard]:
                    alive -= 1
        counts.append(count)
    return counts
