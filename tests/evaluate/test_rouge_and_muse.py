import builtins
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from jaxunlearn.evaluate import memorization, muse, rouge_l

WORDS = ["Running", "ran", "the", "stories", "story", "flies", "U.S.", "2nd", "élan", "-", "\n"]
texts = st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join)


def lcs(a, b):
    """Length of the longest common subsequence, by its recursion."""
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a, 1):
        for j, y in enumerate(b, 1):
            longest = max(table[i - 1, j], table[i, j - 1])
            table[i, j] = table[i - 1, j - 1] + 1 if x == y else longest
    return table[-1, -1]


@settings(max_examples=60)
@given(texts, texts)
def test_rouge_without_stemmer_is_its_definition(prediction, reference):
    pytest.importorskip("rouge_score")
    found = rouge_l([prediction], [reference], stem=False)
    ours, theirs = (re.findall("[a-z0-9]+", t.lower()) for t in (prediction, reference))
    common = lcs(ours, theirs)
    assert found["recall"][0] == pytest.approx(common / max(len(theirs), 1))
    assert found["precision"][0] == pytest.approx(common / max(len(ours), 1))
    assert found["f1"][0] == pytest.approx(2 * common / max(len(ours) + len(theirs), 1))


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=4), st.booleans())
def test_rouge_is_the_packages(pairs, stem):
    scorers = pytest.importorskip("rouge_score.rouge_scorer")
    predictions, references = zip(*pairs, strict=True)
    found = rouge_l(predictions, references, stem=stem)
    scorer = scorers.RougeScorer(["rougeL"], use_stemmer=stem)
    for i, (prediction, reference) in enumerate(pairs):
        wanted = scorer.score(target=reference, prediction=prediction)["rougeL"]
        assert [found[k][i] for k in ("recall", "precision", "f1")] == [
            wanted.recall,
            wanted.precision,
            wanted.fmeasure,
        ]


def test_the_stemmer_and_which_text_is_the_reference():
    pytest.importorskip("rouge_score")
    assert rouge_l(["he runs"], ["he running"], stem=True)["f1"] == 1
    assert rouge_l(["he runs"], ["he running"], stem=False)["f1"] == 0.5
    long = rouge_l(["a b c d"], ["a b"], stem=False)
    assert long["recall"] == 1 and long["precision"] == 0.5
    assert all(v == 0 for v in rouge_l([""], ["a"], stem=True).values())


def test_rouge_without_its_package(monkeypatch):
    load = builtins.__import__

    def without(name, *rest):
        if name.startswith("rouge_score"):
            raise ImportError(name)
        return load(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'ROUGE needs .* pip install -e "\.\[llm\]"'):
        rouge_l(["a"], ["a"], stem=False)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Paris", "Paris"),
        ("Paris\n\nQuestion: who", "Paris"),
        ("Paris\nQuestion who", "Paris"),
        ("Paris Question: who\n\n", "Paris "),
        ("Paris\nLyon", "Paris\nLyon"),
        ("Question: who\n\nx", ""),
    ],
)
def test_answers_are_cut(text, wanted):
    assert muse.cut_answer(text) == wanted
    by_the_authors = text
    for mark in ("\n\n", "\nQuestion", "Question:"):
        by_the_authors = by_the_authors.split(mark)[0]
    assert by_the_authors == wanted


def test_memory_of_words_and_of_facts():
    pytest.importorskip("rouge_score")
    found = muse.verbmem(["a b", "x", "a b"], ["a b", "y", "a c"])
    np.testing.assert_allclose(found.values, [1, 0, 0.5])
    assert found.mean == pytest.approx(0.5) and 0 <= found.low < 0.5 < found.high <= 1
    cut = muse.knowmem(["in Paris\n\nQuestion: a b c"], ["in Paris"])
    assert cut.mean == cut.low == cut.high == 1
    assert muse.verbmem(["in Paris\n\nQuestion: a b c"], ["in Paris"]).mean < 1
    with pytest.raises(ValueError, match="answers is 'Paris'"):
        muse.knowmem("Paris", ["Paris"])
    with pytest.raises(ValueError, match="references has 2 texts; 1 are needed"):
        muse.verbmem(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="values has shape"):
        muse.verbmem([], [])


def test_the_bootstrap_interval():
    values = np.random.default_rng(0).normal(3, 2, 400)
    low, high = muse.bootstrap_interval(values, resamples=2000)
    error = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.02)
    assert muse.bootstrap_interval(values, resamples=50, seed=1) == muse.bootstrap_interval(
        values, resamples=50, seed=1
    )
    assert muse.bootstrap_interval(values, resamples=50, seed=1) != muse.bootstrap_interval(
        values, resamples=50, seed=2
    )
    wider = muse.bootstrap_interval(values, resamples=2000, level=0.99)
    assert wider[0] < low < high < wider[1]
    assert muse.bootstrap_interval([0.5, 0.5], resamples=10) == (0.5, 0.5)
    for settings_, message in (({"level": 1.0}, "level is 1.0"), ({"resamples": 0}, "resamples")):
        with pytest.raises(ValueError, match=message):
            muse.bootstrap_interval(values, **settings_)


scores = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=12)


@given(scores, scores)
def test_auc_is_scikit_learns(members, others):
    labels = [1] * len(members) + [0] * len(others)
    wanted = roc_auc_score(labels, members + others)
    assert memorization.auc(members, others) == pytest.approx(wanted, abs=1e-12)
    assert memorization.auc(others, members) == pytest.approx(1 - wanted, abs=1e-12)
    assert memorization.auc(members, members) == 0.5


@given(scores, scores, scores, scores)
def test_privleak_in_both_orientations(forget, holdout, forget_retrained, holdout_retrained):
    sets = ((forget, holdout), (forget_retrained, holdout_retrained))
    # As MUSE: forget is labelled 0, holdout 1, the score is minus the loss.
    ours = [muse.privleak_auc(f, h) for f, h in sets]
    labelled = [([0] * len(f) + [1] * len(h), np.asarray(f + h)) for f, h in sets]
    assert ours == pytest.approx([roc_auc_score(y, -loss) for y, loss in labelled], abs=1e-12)
    # As open-unlearning: the same labels, the score is the loss.
    theirs = [roc_auc_score(y, loss) for y, loss in labelled]
    if ours[1] < 1e-9:
        return
    found = muse.privleak(*ours)
    assert found == pytest.approx((ours[0] - ours[1]) / ours[1] * 100)
    assert found >= -100
    assert found == pytest.approx(muse.privleak(*theirs, orientation="open-unlearning"), abs=1e-6)
    assert muse.privleak(ours[1], ours[1]) == 0


def test_privleak_of_a_model_that_remembers_and_of_one_that_forgot_too_much():
    low, high, equal = [0.1, 0.2], [3.0, 4.0], [1.0, 2.0]
    retrained = muse.privleak_auc(equal, equal)
    assert retrained == 0.5
    assert muse.privleak(muse.privleak_auc(low, equal), retrained) == -100
    assert muse.privleak(muse.privleak_auc(high, equal), retrained) == 100
    # What muse_bench holds for the retrained model on news, Min-40 %.
    assert muse.privleak(0.4772, 0.4772) == 0
    assert muse.privleak(0.0, 0.4772) == -100


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: muse.privleak(1.5, 0.5), r"auc is 1.5; it must lie in \[0, 1\]"),
        (lambda: muse.privleak(0.5, np.nan), "retrain_auc is nan"),
        (lambda: muse.privleak(0.5, 0.0), "retrain_auc is 0.0; .* divided by 0"),
        (lambda: muse.privleak(0.5, 1.0, orientation="open-unlearning"), "retrain_auc is 1.0"),
        (lambda: muse.privleak(0.5, 0.5, orientation="ou"), "orientation is 'ou'; it must be"),
        (lambda: muse.privleak_auc([], [1.0]), "forget has shape"),
        (lambda: muse.privleak_auc([1.0], [np.nan]), "holdout is nan"),
        (lambda: memorization.auc([[1.0]], [1.0]), r"members has shape \[1, 1\]; \[N\]"),
        (lambda: rouge_l("ab", ["a", "b"], stem=False), "predictions is 'ab'; a sequence of str"),
        (lambda: rouge_l(["a"], [None], stem=False), "references is"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
