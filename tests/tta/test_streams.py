import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxunlearn import tta
from jaxunlearn.tta import streams
from jaxunlearn.tta.streams import CLEAN, Domain

VISITS = [Domain("fog", 5), Domain("snow", 5), Domain("fog", 5), Domain("snow", 3)]


def labels(n=83, n_classes=5, seed=0):
    return np.random.default_rng(seed).integers(0, n_classes, n)


@given(
    setting=st.sampled_from(streams.SETTINGS),
    n=st.integers(20, 90),
    seed=st.integers(0, 5),
    batch_size=st.integers(1, 40),
)
def test_every_image_of_every_visit_arrives_once_and_is_predicted_once(
    setting, n, seed, batch_size
):
    y = labels(n)
    domains, stream = streams.arrange(setting, VISITS, y, seed)
    assert domains == [Domain("fog", 5), Domain("snow", 5), Domain("snow", 3)]
    for visit, domain in enumerate(VISITS):
        rows = stream.rows[stream.visit == visit]
        assert sorted(rows) == [*range(domains.index(domain) * n, (domains.index(domain) + 1) * n)]
    tables = streams.batches(stream, batch_size)
    valid = tables.get("valid", np.ones(tables["rows"].shape, bool))
    np.testing.assert_array_equal(tables["place"][valid], np.arange(len(stream.rows)))
    np.testing.assert_array_equal(tables["rows"][valid], stream.rows)
    if setting.startswith("mixed"):
        assert stream.starts == (0,)
    else:  # no batch holds two domains, and all domains show the images in the same order
        assert all(
            len(set(v[m])) == 1 for v, m in zip(stream.visit[tables["place"]], valid, strict=True)
        )
        orders = (stream.rows % n).reshape(len(VISITS), n)
        assert (orders == orders[0]).all() or "correlated" in setting


def test_orders_of_domains_are_the_published_ones():
    continual, gradual = tta.domains("continual"), tta.domains("gradual")
    assert continual[0] == ("gaussian_noise", 5) and continual[-1] == ("jpeg_compression", 5)
    assert len(continual) == 15 and len(gradual) == 135
    severities = [severity for _, severity in gradual[:9]]
    assert severities == [1, 2, 3, 4, 5, 4, 3, 2, 1]
    with pytest.raises(ValueError, match="order is 'mixed'; continual, gradual are allowed"):
        tta.domains("mixed")


def test_rounds_recur_and_clean_images_come_between():
    once = [Domain("fog", 5), Domain("snow", 5)]
    assert streams.recurring(once, 2) == once * 2
    clean = Domain(CLEAN, 0)
    with_clean = streams.recurring(once, 2, clean_between=True)
    assert with_clean == [clean, *[once[0], clean, once[1], clean] * 2]


def test_a_reset_comes_before_each_new_corruption_but_not_before_a_severity():
    _, stream = streams.arrange("reset", VISITS, labels(40), 0)
    assert stream.resets == (40, 80, 120)
    gradual = [Domain("fog", 1), Domain("fog", 2), Domain("snow", 1)]
    _, stream = streams.arrange("reset", gradual, labels(40), 0)
    tables = streams.batches(stream, 16)
    assert stream.resets == (80,)
    assert np.flatnonzero(tables["reset"]).tolist() == [6]  # 3 batches a domain
    every = streams.batches(stream, 16, reset_every=4)["reset"]
    assert np.flatnonzero(every).tolist() == [4, 6, 8]


@pytest.mark.parametrize("setting", ["correlated", "mixed_correlated"])
def test_correlated_labels_are_sorted_or_come_in_bursts(setting):
    y = labels(200)
    _, stream = streams.arrange(setting, VISITS[:2], y, 0)
    of_segment = (y[stream.rows % 200]).reshape(len(stream.starts), -1)
    assert (np.diff(of_segment) >= 0).all()
    changes = {}
    for delta in (0.05, 100.0):
        _, stream = streams.arrange(setting, VISITS[:2], y, 0, delta=delta)
        assert sorted(stream.rows) == [*range(400)]
        changes[delta] = np.count_nonzero(np.diff(y[stream.rows % 200]))
    assert changes[0.05] < changes[100.0] < 100  # inside a chunk classes come one by one


def test_windows_hold_the_last_images_and_adapt_when_all_are_new():
    _, stream = streams.arrange("continual", VISITS[:2], labels(20), 0)
    tables = streams.windows(stream, 7)
    n = len(stream.rows)
    assert tables["update"].sum() == n // 7
    for t in range(n):
        there = tables["rows"][t][tables["valid"][t]]
        assert set(there) == set(stream.rows[max(0, t - 6) : t + 1])
        assert tables["rows"][t][tables["newest"][t]] == stream.rows[t]
    every = streams.windows(stream, 7, reset_every=2)["reset"]
    assert np.flatnonzero(every).tolist() == [14, 28]


def test_a_drift_is_endless_and_smooth():
    endless = streams.drifting(("fog", "snow", "frost"), 8, seed=1)
    some = streams.take(endless, 80)
    assert some == streams.take(streams.drifting(("fog", "snow", "frost"), 8, seed=1), 80)
    for before, after in zip(some[:-1], some[1:], strict=True):
        fading = {d.name: d.severity for d in before if d.name != CLEAN}
        coming = {d.name: d.severity for d in after if d.name != CLEAN}
        for name in {**fading, **coming}:  # below severity 1 there is nothing to see
            assert abs(fading.get(name, 0.4) - coming.get(name, 0.4)) <= 1.3
    with pytest.raises(ValueError, match="at least two corruptions"):
        next(streams.drifting(("fog",), 8, seed=0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"setting": "sorted"}, "setting is 'sorted'; continual"),
        ({"delta": 0.1}, "delta is 0.1 in the setting 'continual'"),
        ({"setting": "correlated", "delta": 0.0}, "delta is 0.0; it must be above 0"),
    ],
)
def test_streams_that_there_are_not_are_named(change, message):
    arguments = {"setting": "continual", "visits": VISITS, "labels": labels(), "seed": 0}
    with pytest.raises(ValueError, match=message):
        streams.arrange(**arguments | change)
    with pytest.raises(ValueError, match="batch_size is 0"):
        streams.batches(streams.arrange(**arguments)[1], 0)
    with pytest.raises(ValueError, match="length is 1; it must be at least 2"):
        streams.windows(streams.arrange(**arguments)[1], 1)
