"""The suites of language models: one pass gives what many passes give."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("tokenizers")

from jaxunlearn.data import text  # noqa: E402
from jaxunlearn.evaluate import language, memorization, tofu  # noqa: E402
from jaxunlearn.nn.language import decoder, likelihood  # noqa: E402
from tests import language as tiny  # noqa: E402


def asked(n, paraphrased):
    found = []
    for i, question in enumerate(text.refusals(n, seed=n)):
        extra: dict = {"perturbed_answer": [f"It is {i + j}." for j in range(3)]}
        if paraphrased:
            extra["paraphrased_answer"] = f"That would be {i}."
        found.append(question._replace(answer=f"Number {i}, I think.", extra=extra))
    return found


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    return decoder.from_pretrained(tiny.save(tmp_path_factory.mktemp("model")), dtype=jnp.float32)


def alone(pretrained, questions, answers):
    """Length-normalised NLLs, every answer in a pass of its own."""
    rows = text.encode_responses(
        pretrained.tokenizer,
        questions,
        answers,
        template=text.TEMPLATES["chatml"],
        max_tokens=200,
    )
    model = pretrained.model
    one = jax.jit(lambda p, row: likelihood.token_stats(model, p, row))
    stats = [
        one(pretrained.params, jax.tree.map(lambda x, i=i: jnp.asarray(x)[i : i + 1], rows))
        for i in range(len(rows.tokens))
    ]
    return likelihood.TokenStats(*(np.concatenate(parts) for parts in zip(*stats, strict=True)))


def test_one_pass_over_a_tree_equals_a_pass_for_each_answer(pretrained):
    questions = asked(5, True)
    answers = language.tofu_answers(questions)
    stats = language.answer_stats(pretrained, questions, answers, max_tokens=200, chunk=2)
    assert stats.logp.shape[:2] == (5, 5)
    want = alone(pretrained, questions, answers)
    flat = likelihood.TokenStats(*(x.reshape(25, -1) for x in stats))
    np.testing.assert_array_equal(flat.valid, want.valid)
    for name in ("logp", "mean", "variance"):
        np.testing.assert_allclose(getattr(flat, name), getattr(want, name), atol=2e-5)
    np.testing.assert_array_equal(flat.hit, want.hit)
    np.testing.assert_allclose(
        memorization.min_k_plus_plus(flat), memorization.min_k_plus_plus(want), atol=1e-4
    )


def test_tofu_has_nine_parts_and_their_harmonic_mean(pretrained):
    stats, recalls = {}, {}
    for i, name in enumerate(language.GROUPS):
        questions = asked(4 + i, name in ("forget", "retain"))
        answers = language.tofu_answers(questions)
        stats[name] = language.answer_stats(pretrained, questions, answers, max_tokens=200)
        recalls[name] = np.linspace(0.1, 0.9, len(questions))
    found = language.tofu(stats, recalls)
    assert tuple(found["parts"]) == tofu.PARTS
    parts = np.array(list(found["parts"].values()))
    assert found["model_utility"] == pytest.approx(9 / np.sum(1 / parts))
    nll = language.answer_nll(stats["retain"])
    assert found["parts"]["retain_probability"] == pytest.approx(np.exp(-nll[:, 0]).mean())
    ratio = np.exp(-nll[:, 2:]).mean(1) / np.exp(-nll[:, 1])
    want = np.maximum(0, 1 - ratio).mean()
    assert found["parts"]["retain_truth_ratio"] == pytest.approx(want)
    nll = language.answer_nll(stats["world_facts"])
    chance = np.exp(-nll[:, 0]) / np.exp(-nll).sum(1)
    assert found["parts"]["world_facts_probability"] == pytest.approx(chance.mean())
    ratios = found["forget"]["ratios"]
    assert tofu.forget_quality(ratios, ratios) == pytest.approx(1)
    other = language.tofu(stats, recalls, mean="geometric")
    assert other["parts"]["retain_truth_ratio"] != found["parts"]["retain_truth_ratio"]
    with pytest.raises(ValueError, match="tofu: world_facts is missing"):
        language.tofu({k: v for k, v in stats.items() if k != "world_facts"}, recalls)
    with pytest.raises(ValueError, match="has no perturbed_answer"):
        language.tofu_answers(text.refusals(1))


def test_attacks_see_what_a_model_was_trained_on(pretrained):
    questions = asked(6, False)
    stats = language.answer_stats(
        pretrained, questions, [[q.answer] for q in questions], max_tokens=200
    )
    own = language.of_answer(stats, 0)
    texts = [q.answer for q in questions]
    known = own._replace(logp=own.logp / 4)  # likelier by far
    found = language.attacks(known, own, texts=(texts, texts), references=(own, own))
    assert found["loss"] == found["min_k"] == found["reference"] == 1
    same = language.attacks(own, own)
    assert set(same.values()) == {0.5}
    assert language.privleak(own, own, 0.5) == pytest.approx(0)


def test_continuations_do_not_depend_on_the_batch(pretrained):
    questions = text.refusals(5)
    prompts, mask = text.prompts(
        pretrained.tokenizer, questions, template=text.TEMPLATES["chatml"], max_tokens=200
    )
    of = (pretrained.config, pretrained.params, pretrained.tokenizer, prompts, mask, 6)
    found = language.continuations(*of, batch=2)
    assert found == language.continuations(*of, batch=5) and len(found) == 5
    config = dataclasses.replace(pretrained.config, context=50)
    with pytest.raises(ValueError, match="context of this network is 50"):
        language.continuations(config, *of[1:])


def test_what_follows_the_end_is_no_text(pretrained):
    """Of a network that ends at once, or after a word; what pads is an ordinary token here."""
    config, tokenizer = pretrained.config, pretrained.tokenizer
    end, word = config.eos[0], tokenizer.encode("!").ids[0]
    follow = np.full(config.vocabulary, end)
    for first, said in ((end, ""), (word, "!")):
        follow[:] = first
        follow[word] = end
        table = np.zeros((config.vocabulary, 2 * config.vocabulary), np.float32)
        table[np.arange(config.vocabulary), np.arange(config.vocabulary)] = 1
        wide = dataclasses.replace(config, width=2 * config.vocabulary, tied=False, n_layers=1)
        shapes = jax.eval_shape(decoder.decoder(wide).init, jax.random.key(0))[0]
        params = jax.tree.map(lambda like: np.zeros(like.shape, like.dtype), shapes)
        params["embed"]["table"], params["norm"]["scale"] = table, np.ones(wide.width, np.float32)
        params["head"]["kernel"][np.arange(config.vocabulary), follow] = 1
        prompts, mask = np.full((2, 3), 5, np.int32), np.ones((2, 3), bool)
        assert language.continuations(wide, params, tokenizer, prompts, mask, 4) == [said] * 2


def test_answers_of_unknown_tokens_are_refused(pretrained):
    """JAX would read another token's embedding in silence."""
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["[TOOL]"])
    other = dataclasses.replace(pretrained, tokenizer=tokenizer)
    question = text.Question("Call [TOOL] now", "Fine", "q:1")
    with pytest.raises(ValueError, match=r"q:1, response 0: the tokenizer gives the token \d+;"):
        language.answer_stats(other, [question], [["Fine"]], max_tokens=200)
    prompts = np.full((1, 3), pretrained.config.vocabulary)
    of = (pretrained.config, pretrained.params, tokenizer, prompts, np.ones((1, 3), bool), 2)
    with pytest.raises(ValueError, match="tokens are .* the network knows 0 to"):
        language.continuations(*of)
