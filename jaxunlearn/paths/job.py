"""A path study under way: its data, its model, and what is to be computed."""

import dataclasses
import itertools

import numpy as np

from jaxunlearn.core import study
from jaxunlearn.data import text
from jaxunlearn.nn.language import decoder
from jaxunlearn.paths.measures import Probes
from jaxunlearn.paths.settings import Settings
from jaxunlearn.paths.stage_data import StageSource


@dataclasses.dataclass(frozen=True)
class Job(study.Job[Settings]):
    """A study whose settings have been checked and whose folder is ready; see `prepare`."""

    parts: dict[str, StageSource]
    orders: list[tuple[str, ...]]
    pretrained: decoder.Pretrained
    sets: dict[str, text.Sequences]
    probes: Probes
    sampled: list[tuple[np.ndarray, np.ndarray, list[str]]]  # prompts, mask, right answers

    @property
    def prefixes(self) -> list[tuple[str, ...]]:
        """The stage runs: every distinct prefix of an order, once."""
        prefixes = (order[:i] for order in self.all_orders for i in range(1, len(order) + 1))
        return list(dict.fromkeys(prefixes))

    @property
    def all_orders(self) -> list[tuple[str, ...]]:
        """The orders, and those without the forget stage: models retrained from scratch."""
        return [*self.orders, *dict.fromkeys(map(self.retrained, self.orders))]

    def retrained(self, order: tuple[str, ...]) -> tuple[str, ...]:
        """The order of the model that never saw the forget set."""
        return tuple(name for name in order if name != self.settings.forget)

    @property
    def members(self) -> list[tuple[int, int, int]]:
        """(path, loss, seed) of every run of unlearning."""
        paths, losses = range(len(self.orders)), range(len(self.settings.losses))
        return list(itertools.product(paths, losses, range(self.settings.seeds)))

    @property
    def phases(self) -> dict[str, float]:
        """The phases in their order, with their expected shares of the work."""
        tokens = {
            name: data.tokens.size * self.parts[name].epochs for name, data in self.sets.items()
        }
        s = self.settings
        shares = {"+".join(p): float(tokens[p[-1]] * s.seeds) for p in self.prefixes}
        forget = self.sets[s.forget].tokens.size * s.unlearn_epochs
        return shares | {"unlearning": 2.0 * len(self.members) * forget, "evaluation": forget}
