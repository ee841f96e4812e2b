"""U-LiRA against loops, and on samples whose answer is known."""

import numpy as np
import pytest
from scipy.stats import norm

from jaxunlearn.evaluate import ulira, ulira_cheap, ulira_strong


def drawn(shift, runs=60, points=30, seed=0):
    """Margins of unlearned models, which differ by `shift` where a point was forgotten."""
    rng = np.random.default_rng(seed)
    inside = rng.random((runs, points)) < 0.5
    forgot = inside & (rng.random((runs, points)) < 0.6)  # of the rest, some stay trained on
    shadow = np.arange(runs) >= 10
    return rng.normal(size=(runs, points)) + shift * forgot, forgot, ~inside, shadow


def looped(margins, forgot, never, shadow, limit):
    """The attack by its definition, one target and point after the other."""
    rng, found = np.random.default_rng(42), []
    rows = np.flatnonzero(shadow)

    def kinds(p):
        inside, outside = rows[forgot[rows, p]], rows[never[rows, p]]
        n = min(len(inside), len(outside), limit)
        return margins[inside[:n], p], margins[outside[:n], p]

    for target in np.flatnonzero(~shadow):
        positives = [p for p in np.flatnonzero(forgot[target]) if len(kinds(p)[0]) >= 2]
        negatives = [p for p in np.flatnonzero(never[target]) if len(kinds(p)[0]) >= 2]
        negatives = rng.permutation(negatives)[: len(positives)]
        right = []
        for truth, points in ((True, positives[: len(negatives)]), (False, negatives)):
            for p in points:
                inside, outside = (
                    norm(k.mean(), k.std()).pdf(margins[target, p]) for k in kinds(p)
                )
                right.append((inside / (inside + outside) > 0.5) == truth)
        found.append(np.mean(right))
    return np.array(found)


@pytest.mark.parametrize("limit", [300, 7])
@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_it_is_the_loop(shift, limit):
    args = drawn(shift)
    np.testing.assert_allclose(ulira(*args, limit=limit), looped(*args, limit))


def test_nothing_to_tell_gives_one_half_and_a_wide_gap_one():
    exact = ulira(*drawn(0.0, runs=400, points=200))
    assert abs(exact.mean() - 0.5) < 0.03
    assert ulira(*drawn(8.0)).min() > 0.97
    rng = np.random.default_rng(0)
    same = ulira_strong(rng.normal(size=(200, 100)), rng.normal(size=(200, 100)))
    assert abs(same.mean() - 0.5) < 0.03
    assert ulira_strong(rng.normal(size=(50, 20)) + 8, rng.normal(size=(50, 20))).min() > 0.97


def test_the_strong_attack_leaves_each_model_out():
    rng = np.random.default_rng(1)
    unlearned, oracle = rng.normal(size=(8, 3)) + 1, rng.normal(size=(6, 3))
    right = []
    for own, other in ((unlearned, oracle), (oracle, unlearned)):
        for i in range(len(own)):
            rest = np.delete(own, i, 0)
            alike = norm(rest.mean(0), rest.std(0)).pdf(own[i])
            right.append((alike > norm(other.mean(0), other.std(0)).pdf(own[i])) / len(own) / 2)
    np.testing.assert_allclose(ulira_strong(unlearned, oracle), np.sum(right, 0))


def test_the_cheap_attack_asks_which_world_a_model_is_of():
    rng = np.random.default_rng(0)
    full, oracle = rng.normal(size=(50, 20)) + 6, rng.normal(size=(50, 20))
    both = np.concatenate([rng.normal(size=(2, 20)) + 6, rng.normal(size=(2, 20))])
    np.testing.assert_allclose(ulira_cheap(both, full, oracle), [1, 1, 0, 0], atol=0.06)


def test_points_that_cannot_be_attacked_are_left_out():
    margins, forgot, never, shadow = drawn(0.0)
    never[shadow] = False
    assert np.isnan(ulira(margins, forgot, never, shadow)).all()


ARGS = drawn(1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ulira(ARGS[0][:, 1:], *ARGS[1:]), r"are \[60, 29\], \[60, 30\]"),
        (lambda: ulira(ARGS[0], ARGS[1], ~ARGS[2], ARGS[3]), "both forgotten and never seen"),
        (lambda: ulira(*ARGS[:3], np.ones(60, bool)), "shadow holds 60 of 60"),
        (lambda: ulira(np.full((60, 30), np.nan), *ARGS[1:]), "not finite"),
        (lambda: ulira_strong(ARGS[0], ARGS[0][:, 1:]), r"oracle \[60, 29\]"),
        (lambda: ulira_strong(ARGS[0][:2], ARGS[0]), "at least 3"),
        (lambda: ulira_cheap(ARGS[0], ARGS[0][:1], ARGS[0]), "at least 2"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
