"""What is measured of a model in a path study, as one traced function of its parameters."""

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxunlearn.core import chunks
from jaxunlearn.core.model import Model
from jaxunlearn.core.tree import Tree
from jaxunlearn.data import text
from jaxunlearn.evaluate.paths import refusal_phrases as refusal_phrases
from jaxunlearn.nn.language import likelihood

_CHUNK = 8  # questions that are measured together


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Probes:
    """Texts on which models are measured.

    Attributes:
        responses: some questions of each stage with their answers.
        phrases: the forget stage's questions, each with all refusal phrases; None unless that stage
            teaches refusals (the answers themselves are measured then).
    """

    responses: dict[str, text.Sequences]
    phrases: text.PromptTree | None


def probes(
    encoder: text.Encoder,
    of_stage: dict[str, list[text.Question]],
    forget: str,
    n: int,
    refuses: bool,
) -> Probes:
    """At most n questions of each stage, evenly spaced.

    Args:
        encoder: writes them.
        of_stage: all questions, by stage.
        forget: the forget stage.
        n: largest number of questions of a stage.
        refuses: whether the forget stage teaches refusals.
    """
    some = {
        name: [questions[i] for i in np.unique(np.linspace(0, len(questions) - 1, n).astype(int))]
        for name, questions in of_stage.items()
    }
    return Probes(
        {name: encoder.sequences(questions) for name, questions in some.items()},
        encoder.responses(some[forget], refusal_phrases()) if refuses else None,
    )


def measure(model: Model, params: Tree, probes: Probes) -> dict[str, Any]:
    """Measures a model; traced.

    Returns:
        `nll/STAGE` [n]: of each answer, summed over its tokens; `hidden/STAGE` [n, R, D]: what
        predicts them, from which the output layer gives all logits; `phrases` [n, J]: mean
        log-probability per token of each refusal phrase, if there are any.
    """
    measured = {}
    for name, sequences in probes.responses.items():
        nll, hidden = chunks.mapped(
            lambda part: likelihood.nll_and_hidden(model, params, part), sequences, _CHUNK
        )
        measured |= {f"nll/{name}": nll.sum(-1), f"hidden/{name}": hidden}
    if probes.phrases is not None:
        n_phrases = len(refusal_phrases())
        nll = chunks.mapped(
            lambda part: likelihood.token_nll(model, params, part), probes.phrases, _CHUNK
        )
        nll = nll.reshape(*nll.shape[:-1], n_phrases, -1).sum(-1)
        lengths = (probes.phrases.labels >= 0).reshape(*nll.shape, -1).sum(-1)
        measured["phrases"] = -nll / lengths
    return measured
