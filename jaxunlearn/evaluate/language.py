"""The suites of TOFU and MUSE on a language model, from as few passes as they need.

Everything that depends on likelihoods, which is all but the generated answers, comes from one
forward pass over `data.text.PromptTree` rows: a question is read once for all of its answers,
and one `TokenStats` serves probability, truth ratio, memorisation and membership attacks alike.

    questions = text.tofu("forget10_perturbed")
    stats = language.answer_stats(pretrained, questions, language.tofu_answers(questions), ...)
    language.tofu({"forget": stats, ...}, {"forget": recalls, ...})
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core import chunks
from jaxunlearn.core.model import Model
from jaxunlearn.core.tree import Tree
from jaxunlearn.data import text
from jaxunlearn.evaluate import memorization, muse
from jaxunlearn.evaluate import tofu as measures
from jaxunlearn.nn.language import likelihood
from jaxunlearn.nn.language.decoder import Config, Pretrained
from jaxunlearn.nn.language.generation import before_end, generate
from jaxunlearn.nn.language.likelihood import TokenStats

GROUPS = ("forget", "retain", "real_authors", "world_facts")


def tofu_answers(questions: Sequence[text.Question]) -> list[list[str]]:
    """The answers of a `*_perturbed` set: the right one, its paraphrase if any, the wrong ones.

    Raises:
        ValueError: a question without wrong answers.
    """
    answers = []
    for question in questions:
        if "perturbed_answer" not in question.extra:
            raise ValueError(f"{question.id} has no perturbed_answer; a *_perturbed set is needed")
        right = [question.answer]
        if "paraphrased_answer" in question.extra:
            right.append(question.extra["paraphrased_answer"])
        answers.append([*right, *question.extra["perturbed_answer"]])
    return answers


def answer_stats(
    pretrained: Pretrained,
    questions: Sequence[text.Question],
    answers: Sequence[Sequence[str]],
    *,
    params: Tree | None = None,
    max_tokens: int = 512,
    chunk: int = 8,
) -> TokenStats:
    """One forward pass over questions with J answers each.

    Args:
        pretrained: the network, its tokenizer and its chat format.
        questions: N of them.
        answers: J answers to each.
        params: other weights than the network's own.
        max_tokens: the most tokens of a question with one answer.
        chunk: questions computed together.

    Returns:
        NumPy arrays [N, J, R].

    Raises:
        ValueError: a text that is too long, or a token that the network does not know.
    """
    rows = text.encode_responses(
        pretrained.tokenizer,
        questions,
        answers,
        template=text.template_of(pretrained.chat_template),
        max_tokens=max_tokens,
        vocabulary=pretrained.config.vocabulary,
    )
    n_answers = len(answers[0])
    joined = jax.tree.map(jnp.asarray, text.tree(rows, n_answers))
    params = pretrained.params if params is None else params
    stats = jax.device_get(stats_in_chunks(pretrained.model, params, joined, chunk=chunk))
    return TokenStats(*(x.reshape(len(questions), n_answers, -1) for x in stats))


@functools.partial(jax.jit, static_argnames=("model", "chunk"))
def stats_in_chunks(model: Model, params: Tree, rows: Any, *, chunk: int = 8) -> TokenStats:
    """`likelihood.token_stats` of any number of rows, compiled, a chunk at a time."""
    return chunks.mapped(lambda part: likelihood.token_stats(model, params, part), rows, chunk)


def of_answer(stats: TokenStats, number: int | slice) -> TokenStats:
    """The statistics of one answer [N, R], or of several [N, j, R]."""
    return TokenStats(*(x[:, number] for x in stats))


def answer_nll(stats: TokenStats) -> np.ndarray:
    """Length-normalised NLL of every answer, nats per token, [N, J]."""
    flat = TokenStats(*(x.reshape(-1, x.shape[-1]) for x in stats))
    return memorization.loss(flat).reshape(stats.logp.shape[:2])


def tofu(
    stats: Mapping[str, TokenStats],
    recalls: Mapping[str, np.ndarray],
    *,
    mean: Literal["geometric", "arithmetic"] = "arithmetic",
) -> dict[str, Any]:
    """TOFU's measures of a model.

    Args:
        stats: those of the sets `GROUPS`, [N, J, R], as `answer_stats` of `tofu_answers` gives:
            forget and retain have a paraphrase after the right answer, the other two have none.
        recalls: ROUGE-L recall of the generated answers by the same names, [N].
        mean: mean of the truth ratio in the utility: "arithmetic" as TOFU has it, "geometric" as
            open-unlearning.

    Returns:
        `parts`, the nine of `tofu.PARTS`; `model_utility`; and `forget` with its `probability`,
        `rouge`, `truth_ratio`, `exact_memorization`, `extraction_strength`, and `ratios` [N] of the
        geometric mean, which `tofu.forget_quality` compares with those of a retrained model.

    Raises:
        ValueError: a set that is missing.
    """
    for name in GROUPS:
        if name not in stats or name not in recalls:
            raise ValueError(f"tofu: {name} is missing; all of {', '.join(GROUPS)} are needed")
    parts = {}
    for name in GROUPS[1:]:
        nll = answer_nll(stats[name])
        paraphrased = int(name == "retain")
        right, wrong = nll[:, paraphrased], nll[:, paraphrased + 1 :]
        chance = np.exp(-nll[:, 0]) if paraphrased else measures.option_probability(right, wrong)
        ratio = measures.truth_ratio(right, wrong, mean=mean)
        parts |= {
            f"{name}_probability": float(chance.mean()),
            f"{name}_rouge": float(np.mean(recalls[name])),
            f"{name}_truth_ratio": measures.truth_ratio_of_others(ratio),
        }
    answer, nll = of_answer(stats["forget"], 0), answer_nll(stats["forget"])
    ratios = measures.truth_ratio(nll[:, 1], nll[:, 2:])
    return {
        "parts": parts,
        "model_utility": measures.model_utility(parts),
        "forget": {
            "probability": float(np.exp(-nll[:, 0]).mean()),
            "rouge": float(np.mean(recalls["forget"])),
            "truth_ratio": measures.truth_ratio_of_forgotten(ratios),
            "exact_memorization": float(np.nanmean(memorization.exact_memorization(answer))),
            "extraction_strength": float(memorization.extraction_strength(answer).mean()),
            "ratios": ratios,
        },
    }


def attacks(
    forget: TokenStats,
    holdout: TokenStats,
    *,
    k: float = 0.4,
    texts: tuple[Sequence[str], Sequence[str]] | None = None,
    references: tuple[TokenStats, TokenStats] | None = None,
) -> dict[str, float]:
    """AUC of each membership attack: above 0.5 where the forget set looks like training data.

    Args:
        forget: token statistics of the forget texts, [N, R].
        holdout: those of texts that no model saw, [M, R].
        k: part of the tokens that Min-K and Min-K++ look at.
        texts: the texts themselves, for the zlib attack.
        references: the same statistics of a reference model, for the reference attack.
    """
    scores = {
        "loss": memorization.loss,
        "min_k": functools.partial(memorization.min_k, k=k),
        "min_k_plus_plus": functools.partial(memorization.min_k_plus_plus, k=k),
    }
    pairs = {name: (score(forget), score(holdout)) for name, score in scores.items()}
    if texts is not None:
        pairs["zlib"] = (
            memorization.zlib(forget, texts[0]),
            memorization.zlib(holdout, texts[1]),
        )
    if references is not None:
        pairs["reference"] = (
            memorization.reference(forget, references[0]),
            memorization.reference(holdout, references[1]),
        )
    return {name: memorization.auc(-ours, -theirs) for name, (ours, theirs) in pairs.items()}


def privleak(forget: TokenStats, holdout: TokenStats, retrain_auc: float) -> float:
    """MUSE's PrivLeak of Min-40 % probability, in percent: 0 is that of a retrained model."""
    auc = muse.privleak_auc(memorization.min_k(forget), memorization.min_k(holdout))
    return muse.privleak(auc, retrain_auc)


def continuations(
    config: Config,
    params: Tree,
    tokenizer: Any,
    prompts: np.ndarray,
    mask: np.ndarray,
    n_tokens: int,
    *,
    batch: int = 16,
) -> list[str]:
    """Greedy texts after prompts, up to their ends: 200 tokens for TOFU, 128 and 32 for MUSE.

    Args:
        config: the network's.
        params: its weights.
        tokenizer: turns tokens into text.
        prompts: int32 [N, T], padded on the left (`data.text.prompts`).
        mask: bool [N, T].
        n_tokens: the most tokens of each.
        batch: prompts computed together.
    """
    decoded = []
    for rows, size in chunks.blocks(len(prompts), batch):
        tokens = generate(config, params, jnp.asarray(prompts[rows]), mask[rows], n_tokens)
        texts = [tokenizer.decode(row) for row in before_end(config, tokens)]
        decoded += texts[:size]
    return decoded
