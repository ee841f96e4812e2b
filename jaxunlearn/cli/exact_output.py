"""What `jaxunlearn exact` prints: the state of a store, and what a deletion cost; no JAX."""

from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from jaxunlearn.exact.store import Outcome, Store


def costs(store: Store, outcomes: list[Outcome], before: np.ndarray) -> dict[int, dict[str, Any]]:
    """What new deletions took from each shard that they reached."""
    after, plan = store.surviving(), store.plan
    lost: dict[int, dict[str, Any]] = {}
    for shard in sorted({outcome.shard for outcome in outcomes if not outcome.repeated}):
        new = {one.slice for one in outcomes if one.shard == shard and not one.repeated}
        at = [shard * plan.n_slices + number for number in sorted(new)]
        lost[shard] = {
            "slices": sorted(new),
            "examples_given_up": int(np.isin(store.files.places, at).sum()),
            "stages_lost": int((before[shard] - after[shard]).sum()),
            "stages_left": int(after[shard].sum()),
            "serves": [int(before[shard].max()), int(after[shard].max())],
        }
    return lost


def cost_in_words(shard: int, cost: dict[str, Any]) -> str:
    """One of the `costs` as a line."""
    slices = "slice" + "s" * (len(cost["slices"]) > 1) + " " + ", ".join(map(str, cost["slices"]))
    before, after = cost["serves"]
    return (
        f"cost in shard {shard}: {slices} with {cost['examples_given_up']} examples given up; "
        f"{cost['stages_lost']} trained stages lost, {cost['stages_left']} left; it answers with "
        f"{after} stages, before with {before}"
    )


def print_plainly(console: Console, line: str) -> None:
    """Prints a line with names of the user's, whatever brackets and numbers they hold."""
    console.print(line, markup=False, highlight=False)


def stored(status: dict[str, Any]) -> list[str]:
    """How many examples are stored, and what the others of the data are for."""
    others = {"public": "are public, the base learns them", "validation": "validate"}
    more = [f"{status[name]:,} {what}" for name, what in others.items() if status[name]]
    return ["; ".join([f"{status['examples']:,} examples are stored", *more])] if more else []


def show_status(store: Store, console: Console) -> dict[str, Any]:
    """Prints the state of a store, and returns it."""
    status = store.status()
    console.print(
        f"{status['examples']} examples, {status['deleted']} of them deleted; "
        f"{status['living_shards']} of {status['shards']} shards are alive; "
        f"{status['bytes'] / 1e6:.1f} MB",
        highlight=False,
    )
    for line in stored(status):
        print_plainly(console, line)
    table = Table("shard", *(f"order {b}" for b in range(status["budget"])), "serves")
    depth, order = status["serves"]["depth"], status["serves"]["order"]
    for shard, left in enumerate(status["stages_left"]):
        serves = f"order {order[shard]}, {depth[shard]} stages" if depth[shard] else "nothing"
        table.add_row(str(shard), *map(str, left), serves)
    console.print(table, "stages left of every order", sep="")
    if status["empty_slices"]:
        console.print(
            f"{status['empty_slices']} slices hold no example: what reads them learns none"
        )
    if status["needs_retraining"]:
        console.print("no shard is alive: run `jaxunlearn exact repair`")
    return status
