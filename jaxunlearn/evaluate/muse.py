"""Measures of MUSE: memory of words, memory of facts, and what an attack on privacy still finds.

Source: Shi et al., MUSE, arXiv 2407.06460, and swj0419/muse_bench. Memory is a fraction here; MUSE
prints it times 100.
"""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from jaxunlearn.evaluate._checks import finite, strings
from jaxunlearn.evaluate._rouge import rouge_l
from jaxunlearn.evaluate.memorization import auc

_CUT = re.compile("\n\n|\nQuestion|Question:")


class Memory(NamedTuple):
    """What `verbmem` and `knowmem` find.

    Attributes:
        mean: over the texts, in [0, 1].
        low: lower end of the 95 % interval of the mean.
        high: upper end.
        values: score of every text, float64 [N].
    """

    mean: float
    low: float
    high: float
    values: np.ndarray


def verbmem(continuations: Sequence[str], references: Sequence[str], *, seed: int = 0) -> Memory:
    """Verbatim memory: mean ROUGE-L F1, without stemmer, of continuations and what the text says.

    Args:
        continuations: N greedy continuations of the texts' beginnings (MUSE: 128 tokens).
        references: how the texts go on, N.
        seed: seed of the bootstrap.

    Raises:
        ValueError: no texts, or other than two sequences of equally many strings.
    """
    return _memory(rouge_l(continuations, references, stem=False)["f1"], seed)


def knowmem(answers: Sequence[str], references: Sequence[str], *, seed: int = 0) -> Memory:
    """Memory of facts: mean ROUGE-L F1, without stemmer, of answers cut off by `cut_answer`.

    Args:
        answers: N greedy answers (MUSE: 32 tokens) to a prompt that shows solved examples as
            "Question: ...", "Answer: ...".
        references: the right answers, N.
        seed: seed of the bootstrap.

    Raises:
        ValueError: as `verbmem`.
    """
    answers = [cut_answer(answer) for answer in strings("answers", answers)]
    return _memory(rouge_l(answers, references, stem=False)["f1"], seed)


def cut_answer(text: str) -> str:
    r"""What stands before the first empty line or the next question that the model makes up.

    >>> cut_answer("In Paris.\n\nQuestion: And who")
    'In Paris.'
    """
    return _CUT.split(text, maxsplit=1)[0]


def privleak_auc(forget: np.ndarray, holdout: np.ndarray) -> float:
    """The AUC that MUSE's PrivLeak is made of: the holdout set as members, the forget set as not.

    The chance that a holdout text has a lower loss than a forget text, ties counting half: near 0
    if the forget set is remembered, about 0.5 if neither was seen.

    Args:
        forget: a loss of the texts to be forgotten, such as `memorization.min_k` with k = 0.4, [N].
        holdout: the same of texts that were never trained on, [M].

    Returns:
        In [0, 1]; open-unlearning's AUC is 1 minus this.

    Raises:
        ValueError: losses that are empty, not vectors, or not finite.
    """
    forget, holdout = finite("forget", forget, "N"), finite("holdout", holdout, "M")
    return auc(-holdout, -forget)


def privleak(
    auc: float,
    retrain_auc: float,
    *,
    orientation: Literal["muse", "open-unlearning"] = "muse",
) -> float:
    """By how many per cent the AUC of an attack differs from that on a retrained model.

    | orientation     | AUC of the holdout set having     | PrivLeak / 100                    |
    |-----------------|-----------------------------------|-----------------------------------|
    | muse            | the *lower* loss (`privleak_auc`) | (AUC - retrain) / retrain         |
    | open-unlearning | the *higher* loss                 | (retrain - AUC) / (1 - retrain)   |

    Both say the same once each is given its own AUC. 0 is what retraining gives; -100 is a forget
    set that is fully remembered; above 0 it was pushed away further than if it had never been seen.

    Args:
        auc: AUC of the unlearned model, in [0, 1].
        retrain_auc: that of a model retrained without the forget set, in [0, 1]; where there is
            none, open-unlearning takes 0.5.
        orientation: which of the two AUCs both are.

    Returns:
        Per cent, at least -100.

    Raises:
        ValueError: an AUC out of [0, 1], a retrained model's that leaves nothing to divide by, or
            another orientation.
    """
    if orientation not in ("muse", "open-unlearning"):
        raise ValueError(
            f"privleak: orientation is {orientation!r}; it must be muse or open-unlearning"
        )
    for name, value in (("auc", auc), ("retrain_auc", retrain_auc)):
        if not 0 <= value <= 1:
            raise ValueError(f"privleak: {name} is {value}; it must lie in [0, 1]")
    value, base = auc, retrain_auc
    if orientation == "open-unlearning":
        value, base = 1 - value, 1 - base
    if base == 0:
        raise ValueError(
            f"privleak: retrain_auc is {retrain_auc}; with orientation {orientation!r} it is "
            "divided by 0"
        )
    return float(100 * (value - base) / base)


def bootstrap_interval(
    values: np.ndarray, *, level: float = 0.95, resamples: int = 9999, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap of a mean: the interval that holds `level` of resampled means.

    Args:
        values: values of the examples, [N].
        level: in (0, 1).
        resamples: how often N values are drawn anew, with replacement.
        seed: seed of the draws; the same seed gives the same interval.

    Returns:
        Its lower and upper end.

    Raises:
        ValueError: no values, values that are not finite, or a setting out of its range.
    """
    values = finite("values", values, "N")
    if not 0 < level < 1:
        raise ValueError(f"bootstrap_interval: level is {level}; it must lie in (0, 1)")
    if resamples < 1:
        raise ValueError(f"bootstrap_interval: resamples is {resamples}; at least 1 is needed")
    rng = np.random.default_rng(seed)
    means = [rng.choice(values, len(values)).mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _memory(values: np.ndarray, seed: int) -> Memory:
    low, high = bootstrap_interval(values, seed=seed)
    return Memory(float(values.mean()), low, high, values)
