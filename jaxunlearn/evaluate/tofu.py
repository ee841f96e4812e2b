"""Measures of TOFU: what a model still knows of fictitious authors, and what else it still knows.

Source: Maini et al., TOFU, arXiv 2401.06121, and locuslab/open-unlearning. All take
length-normalised negative log-likelihoods (NLL, nats per token of the answer), so that a
"probability" here is exp(-NLL), the geometric mean of the probabilities of the tokens.

The nine parts of the utility (`PARTS`), of the retain set, real authors and world facts each:

- probability: the mean of `probability` for the retain set, of `option_probability` for the other
  two, which come with wrong options;
- ROUGE-L recall, with stemmer (`evaluate.rouge_l`), of greedy answers of at most 200 tokens;
- `truth_ratio_of_others`.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from scipy.special import logsumexp

from jaxunlearn.evaluate._checks import finite
from jaxunlearn.evaluate.memorization import probability as probability

PARTS = tuple(
    f"{group}_{measure}"
    for group in ("retain", "real_authors", "world_facts")
    for measure in ("probability", "rouge", "truth_ratio")
)

_LARGEST = 700.0  # nats: exp of it and of its negative are still normal float64 numbers


def truth_ratio(
    paraphrase_nll: np.ndarray,
    perturbed_nll: np.ndarray,
    *,
    mean: Literal["geometric", "arithmetic"] = "geometric",
) -> np.ndarray:
    """Mean probability of the perturbed (wrong) answers over that of the paraphrased right one.

    Two means are in use, and they differ: TOFU's forget quality and open-unlearning average the
    NLLs ("geometric"), TOFU's model utility averages the probabilities ("arithmetic"), which is
    never smaller. Only differences of NLLs are exponentiated, so that a model that gives all
    answers an NLL of 500 still has a ratio; it saturates at e^-700 and e^700.

    Args:
        paraphrase_nll: NLL of the paraphrased right answer, nats per token, [B].
        perturbed_nll: NLL of J perturbed answers, nats per token, [B, J].
        mean: see above.

    Returns:
        float64 [B], positive and finite; below 1 where the right answer is preferred.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, or another mean.
    """
    right, wrong = _answers("paraphrase_nll", paraphrase_nll, "perturbed_nll", perturbed_nll)
    if mean == "geometric":
        log_wrong = -wrong.mean(1)
    elif mean == "arithmetic":
        log_wrong = logsumexp(-wrong, axis=1) - np.log(wrong.shape[1])
    else:
        raise ValueError(f"truth_ratio: mean is {mean!r}; it must be geometric or arithmetic")
    return np.exp(np.clip(log_wrong + right, -_LARGEST, _LARGEST))


def truth_ratio_of_forgotten(ratio: np.ndarray) -> float:
    """Mean of min(R, 1/R), R [B]: 1 where wrong answers are as likely as the right one."""
    ratio = _ratio("ratio", ratio)
    inverse = 1 / np.maximum(ratio, np.finfo(np.float64).tiny)
    return float(np.minimum(ratio, inverse).mean())


def truth_ratio_of_others(ratio: np.ndarray) -> float:
    """Mean of max(0, 1 - R), R [B]: for sets that are to be known, 1 is certainty."""
    return float(np.maximum(0, 1 - _ratio("ratio", ratio)).mean())


def option_probability(true_nll: np.ndarray, false_nll: np.ndarray) -> np.ndarray:
    """p_true / (p_true + sum of p_false): how the right option stands among the wrong ones.

    Args:
        true_nll: NLL of the right option, nats per token, [B].
        false_nll: NLL of J wrong options, nats per token, [B, J].

    Returns:
        float64 [B] in [0, 1].

    Raises:
        ValueError: shapes that do not fit, or values that are not finite.
    """
    right, wrong = _answers("true_nll", true_nll, "false_nll", false_nll)
    logs = np.concatenate([-right[:, None], -wrong], axis=1)
    return np.exp(logs[:, 0] - logsumexp(logs, axis=1))


def forget_quality(unlearned_ratio: np.ndarray, retain_ratio: np.ndarray) -> float:
    """How well the truth ratios of the forget set pass for those of a model that never saw it.

    The p-value of the two-sample Kolmogorov-Smirnov test, two-sided and exact (up to 10,000
    questions), as `scipy.stats.ks_2samp` has it; `evaluate.kolmogorov_smirnov` has the asymptotic
    one. It depends on ranks alone: R, 1/R and log R give the same.

    Args:
        unlearned_ratio: `truth_ratio` of the unlearned model on the forget set, [B].
        retain_ratio: the same of a model trained on the retain set only, [C].

    Returns:
        In [0, 1]; 1 means that nothing tells the two samples apart, below 0.05 is a failure. It
        falls with the number of questions: compare at equal numbers only.

    Raises:
        ValueError: samples that are empty, negative or not finite.
    """
    import scipy.stats  # here, since it takes a second to import

    unlearned = _ratio("unlearned_ratio", unlearned_ratio)
    retain = _ratio("retain_ratio", retain_ratio)
    _, p_value = scipy.stats.ks_2samp(unlearned, retain)
    return float(np.asarray(p_value))


def model_utility(parts: Mapping[str, float]) -> float:
    """Harmonic mean of the nine parts: it is high only if all of them are, and 0 if one is 0.

    Args:
        parts: nine numbers in [0, 1], by any names (those in `PARTS`, or a logger's own).

    Raises:
        ValueError: not nine of them, or one that is NaN or outside [0, 1].
    """
    if len(parts) != len(PARTS):
        raise ValueError(
            f"model_utility: parts has {len(parts)} entries, {sorted(parts)}; nine are needed, "
            f"such as {list(PARTS)}"
        )
    values = np.asarray(list(parts.values()), np.float64)
    for name, value in zip(parts, values, strict=True):
        if not 0 <= value <= 1 + 1e-6:  # a mean of ones may round up
            raise ValueError(f"model_utility: parts[{name!r}] is {value}; it must lie in [0, 1]")
    with np.errstate(divide="ignore", over="ignore"):
        return float(len(values) / np.sum(1 / values))


def _answers(right_name: str, right, wrong_name: str, wrong) -> tuple[np.ndarray, np.ndarray]:
    right, wrong = finite(right_name, right, "B"), finite(wrong_name, wrong, "B, J")
    if len(right) != len(wrong):
        raise ValueError(
            f"{right_name} has {len(right)} rows and {wrong_name} {len(wrong)}; as many are needed"
        )
    return right, wrong


def _ratio(name: str, ratio) -> np.ndarray:
    ratio = finite(name, ratio, "B")
    if ratio.min() < 0:
        raise ValueError(f"{name} has {ratio.min()}; ratios of probabilities are not negative")
    return ratio
