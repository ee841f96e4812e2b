"""ROUGE-L of texts, by the package that the papers use."""

from collections.abc import Sequence

import numpy as np

from jaxunlearn.core.extras import MissingPackageError
from jaxunlearn.evaluate._checks import strings


def rouge_l(
    predictions: Sequence[str], references: Sequence[str], *, stem: bool
) -> dict[str, np.ndarray]:
    """Longest common subsequence of words of a text and its reference, over their lengths.

    The package `rouge_score` computes it: words are runs of lower-case letters a-z and digits, and
    the stemmer (Porter's) leaves words of 3 letters or fewer alone. TOFU reports the recall with
    stemmer, MUSE the F1 without.

    Args:
        predictions: N texts, such as greedy continuations.
        references: the N texts that they are held against.
        stem: whether words are reduced to their stems.

    Returns:
        "recall" (over the reference's words), "precision" (over the prediction's) and "f1", each
        float64 [N] in [0, 1]; 0 where a text has no words.

    Raises:
        ValueError: other than two sequences of equally many strings.
        MissingPackageError: the package is not installed.
    """
    predictions = strings("predictions", predictions)
    references = strings("references", references, len(predictions))
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise MissingPackageError("ROUGE", "rouge_score") from error
    scorer = RougeScorer(["rougeL"], use_stemmer=stem)
    pairs = zip(references, predictions, strict=True)
    scores = [scorer.score(reference, prediction)["rougeL"] for reference, prediction in pairs]
    return {
        "recall": np.asarray([s.recall for s in scores], np.float64),
        "precision": np.asarray([s.precision for s in scores], np.float64),
        "f1": np.asarray([s.fmeasure for s in scores], np.float64),
    }
