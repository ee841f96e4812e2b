"""SISA, full retraining, their costs, and their requests."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn.exact import alternatives, deletion, orders, plan

RECIPE = plan.StageRecipe(epochs=2, batch_size=10, dropout=0.0)


def test_a_thousand_requests_cost_what_the_lifetimes_say():
    """The paper's figure 9: trainings from scratch, and so their number is R over the lifetime."""
    s3t = plan.make(5, orders.cyclic(4, 4), 100, recipe=RECIPE)
    sisa = alternatives.sisa(5, 4, 100, recipe=RECIPE)
    hits = deletion.requests(5, 4, None, (200, 1000), jax.random.key(0))
    dead = {
        name: alternatives.retraining_when_dead(plan, hits)[:, -1].mean() / whole(plan)
        for name, plan in (("s3t", s3t), ("sisa", sisa))
    }
    assert dead["s3t"] == pytest.approx(1000 / 71.955, rel=0.05)
    assert dead["sisa"] / dead["s3t"] == pytest.approx(1.576, rel=0.05)
    full = alternatives.full(2000, recipe=RECIPE)
    once = alternatives.retraining_at_once(full, np.zeros((1, 1000), int))
    assert once[0, -1] == 1000 * whole(full) == 1000 * 2 * 2000


def whole(plan):
    levels = range(1, plan.n_slices + 1)
    return sum(len(plan.prefixes(n)) * plan.n_steps(n) for n in levels) * plan.recipe.batch_size


def test_sisa_goes_back_to_the_stage_before():
    sisa = alternatives.sisa(2, 3, 10, recipe=RECIPE)  # stages read 20, 40 and 60
    reads = alternatives.retraining_at_once(sisa, np.array([2, 1, 3, 0]))
    assert reads.tolist() == [60, 160, 280, 400]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
def test_systems_die_when_no_stage_is_left(n_shards, n_slices, seed):
    plan = alternatives.sisa(n_shards, n_slices, 10, recipe=RECIPE)
    hits = np.random.default_rng(seed).integers(0, n_shards * n_slices, 60)
    deaths = alternatives.retraining_when_dead(plan, hits) // whole(plan)
    deleted, count = np.zeros((n_shards, n_slices), bool), 0
    for hit, died in zip(hits, deaths, strict=True):
        deleted[hit // n_slices, hit % n_slices] = True
        if deletion.needs_retraining(deletion.surviving(plan.table, deleted)):
            deleted[:], count = False, count + 1
        assert died == count


def test_requests_of_sisa_have_their_distributions():
    n = 1000
    drawn = np.asarray(alternatives.exponential(n, (100_000,), jax.random.key(0)))
    rate = -np.log(0.05) / n
    mass = np.exp(-rate * np.arange(n + 1))
    want = (mass[:500] - mass[1:501]).sum() / 0.95
    assert (drawn < 500).mean() == pytest.approx(want, abs=0.01) and drawn.max() < n
    drawn = np.asarray(alternatives.pareto(n, (100_000,), jax.random.key(1)))
    weights = 1.16 / (1.0 + np.arange(n)) ** 2.16
    assert (drawn == 0).mean() == pytest.approx(weights[0] / weights.sum(), abs=0.01)
    assert (drawn < 10).mean() == pytest.approx(weights[:10].sum() / weights.sum(), abs=0.01)
    for bad in (
        lambda: alternatives.pareto(0, (1,), jax.random.key(0)),
        lambda: alternatives.pareto(9, (1,), jax.random.key(0), a=0.0),
        lambda: alternatives.exponential(9, (1,), jax.random.key(0), rate=-1.0),
    ):
        with pytest.raises(ValueError, match="must be at least 1|above 0"):
            bad()
