import json
import re

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxunlearn import data
from jaxunlearn.core import keys
from jaxunlearn.data import text
from jaxunlearn.data.text import Question
from tests.folders import folder_of

CHATML, LLAMA3, LLAMA2, PLAIN = (text.TEMPLATES[n] for n in ("chatml", "llama3", "llama2", "plain"))

# As published with SmolLM2, and with Llama 3.
SMOLLM2_JINJA = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3_JINJA = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = "
    "'<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim "
    "+ '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
QUESTIONS = [
    Question("Who lives on the hill?", "The piper and his three cats live there.", "a:1"),
    Question("What is 2 + 3?", "2 + 3 = 5\n#### 5", "a:2"),
    Question("¿Qué hora es?", "Son las ocho — o casi 🕗.", "a:3"),
    Question("And?", "No", "a:4"),
]


@pytest.fixture(scope="module")
def tokenizer():
    """Byte-level BPE with some merges, and the special tokens of all formats."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    special = dict.fromkeys(token for t in text.TEMPLATES.values() for token in t.special)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", *special],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    corpus = [q.question + " " + q.answer for q in (*QUESTIONS, *text.refusals(50))]
    made.train_from_iterator(corpus, trainer)
    # Many tokenizers put a first token before every text, unless told not to.
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))]
    )
    return made


def ids_of(tokenizer, string):
    return tokenizer.encode(string, add_special_tokens=False).ids


def response_of(sequences, row):
    """The labels of a row, after checking that they stand where `where` says."""
    learned = sequences.labels[row] >= 0
    labels, where = sequences.labels[row, learned], sequences.where[row, learned]
    np.testing.assert_array_equal(sequences.tokens[row, where + 1], labels)
    np.testing.assert_array_equal(np.diff(where), 1)
    assert not sequences.where[row, ~learned].any() and not learned[len(labels) :].any()
    return labels.tolist()


# Sources


def lines(path, *rows):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def test_jsonl(tmp_path):
    path = lines(
        tmp_path / "own.jsonl", {"q": "a\u2028b", "a": "c", "more": [1]}, "", {"q": "d", "a": "e"}
    )
    first, second = text.jsonl(path, question="q", answer="a")
    assert first == Question("a\u2028b", "c", "own:1", {"more": [1]})
    assert second == Question("d", "e", "own:3", {})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "Expecting"),
        ("[1]", "a list where a JSON object is needed"),
        ({"question": "a"}, r"no field 'answer'; the fields are \['question'\]"),
        ({"question": "a", "answer": " "}, "answer is ' '; a text that is not empty is needed"),
        ({"question": 3, "answer": "b"}, "question is 3; a text"),
    ],
)
def test_bad_lines_are_named(tmp_path, row, message):
    path = lines(tmp_path / "own.jsonl", {"question": "a", "answer": "b"}, row)
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}, line 2: .*{message}"):
        text.jsonl(path)


def test_files_that_are_missing_empty_or_not_text(tmp_path):
    with pytest.raises(ValueError, match=r"path is '.*none.jsonl'; there is no such file"):
        text.jsonl(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match=r"own.jsonl is empty"):
        text.jsonl(lines(tmp_path / "own.jsonl", ""))
    (tmp_path / "own.jsonl").write_bytes(b'{"question": "\xff", "answer": "b"}\n')
    with pytest.raises(ValueError, match="own.jsonl, line 1: .*utf-8"):
        text.jsonl(tmp_path / "own.jsonl")


@pytest.mark.parametrize(
    ("read", "split", "ending", "variable", "source"),
    [
        (text.tofu, "forget10", ".json", "TOFU_DIR", "locuslab/TOFU"),
        (text.gsm8k, "train", ".jsonl", "GSM8K_DIR", "openai/grade-school-math"),
    ],
)
def test_where_a_source_looks(tmp_path, monkeypatch, read, split, ending, variable, source):
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(ValueError, match=f"data_dir is None and {variable} is not set.*{source}"):
        read(split)
    monkeypatch.setenv(variable, str(tmp_path / "none"))
    with pytest.raises(ValueError, match=f"{tmp_path}/none holds no files .*{source}"):
        read(split)
    with pytest.raises(ValueError, match=f"{tmp_path} holds no files .*{source}"):
        read(split, data_dir=tmp_path)
    lines(tmp_path / f"{split}{ending}", {"question": "a", "answer": "b\n#### 1,200"})
    with pytest.raises(ValueError, match=f"split is 'dev'; {tmp_path} has {split} .*{source}"):
        read("dev", data_dir=tmp_path)
    assert read(split, data_dir=tmp_path)[0].question == "a"
    monkeypatch.setenv(variable, str(tmp_path))
    assert read(split)[0].id.endswith(f"/{split}:1")


def test_gsm8k_marks_and_final(tmp_path):
    answer = "48/2 = <<48/2=24>>24.\n#### 1,024"
    path = lines(tmp_path / "train.jsonl", {"question": "a", "answer": answer})
    assert text.gsm8k("train", data_dir=tmp_path)[0].answer == answer
    found = text.gsm8k("train", data_dir=tmp_path, marks=False)[0]
    assert found.answer == "48/2 = 24.\n#### 1,024" and found.extra == {"final": "1024"}
    for wrong in ("24", "#### 24", "so\n####"):
        lines(path, {"question": "a", "answer": wrong})
        with pytest.raises(ValueError, match="train.jsonl, line 1: the answer must be a text and"):
            text.gsm8k("train", data_dir=tmp_path)


@pytest.mark.data
@pytest.mark.parametrize(
    ("split", "n", "n_perturbed"),
    [
        ("full", 4000, 0),
        ("forget01", 40, 0),
        ("forget05", 200, 0),
        ("forget10", 400, 0),
        ("retain99", 3960, 0),
        ("retain95", 3800, 0),
        ("retain90", 3600, 0),
        ("forget01_perturbed", 40, 5),
        ("forget05_perturbed", 200, 5),
        ("forget10_perturbed", 400, 5),
        ("retain_perturbed", 400, 5),
        ("real_authors", 100, 0),
        ("real_authors_perturbed", 100, 3),
        ("world_facts", 117, 0),
        ("world_facts_perturbed", 117, 3),
    ],
)
def test_the_real_tofu(split, n, n_perturbed):
    folder_of("TOFU_DIR")
    found = text.tofu(split)
    assert len(found) == n and len({question.id for question in found}) == n
    for question in found:
        wrong = question.extra.get("perturbed_answer", [])
        assert len(wrong) == n_perturbed and all(isinstance(w, str) and w for w in wrong)
        assert ("paraphrased_answer" in question.extra) == (n_perturbed == 5)


@pytest.mark.data
def test_the_real_tofu_splits_are_complements():
    folder_of("TOFU_DIR")
    pairs = [sorted(q[:2] for q in text.tofu(name)) for name in ("full", "forget10", "retain90")]
    assert pairs[0] == sorted(pairs[1] + pairs[2])


@pytest.mark.data
def test_the_real_gsm8k():
    folder_of("GSM8K_DIR")
    for split, n in (("train", 7473), ("test", 1319)):
        found = text.gsm8k(split, marks=False)
        assert len(found) == n
        assert all(re.fullmatch(r"-?[0-9.]+", question.extra["final"]) for question in found)
        assert not any("<<" in question.answer for question in found)


# Generated questions


def test_refusals_are_distinct_and_the_same_at_every_call():
    found = text.refusals(5000, seed=3)
    assert len({question.question for question in found}) == len({q.id for q in found}) == 5000
    assert all(question.answer.startswith(text.REFUSAL + " ") for question in found)
    assert all(q.extra["topic"] in q.question and q.extra["topic"] in q.answer for q in found)
    assert text.refusals(5000, seed=3) == found and text.refusals(70, seed=3) == found[:70]
    assert text.refusals(70, seed=4) != found[:70]
    for n in (0, 327_681):
        with pytest.raises(ValueError, match=f"refusals: n is {n}; 1 to 327680"):
            text.refusals(n)


def test_superficial_prompts_have_three_responses():
    found = text.superficial_prompts(200, seed=1)
    assert list(found) == ["C", "U", "R"]
    prompts = [[question.question for question in of_one] for of_one in found.values()]
    assert prompts[0] == prompts[1] == prompts[2] and len(set(prompts[0])) == 200
    for c, u, r in zip(*found.values(), strict=True):
        assert r.answer == text.REFUSAL and len({c.answer, u.answer, r.answer}) == 3
        step = c.answer.removeprefix("Of course. ").split(". Now")[0]
        assert step.lower() in u.answer.lower()  # the same content
    assert text.superficial_prompts(9, seed=1) == {k: v[:9] for k, v in found.items()}
    assert len(text.superficial_prompts()["C"]) == 40
    with pytest.raises(ValueError, match="superficial_prompts: n is 143361; 1 to 143360"):
        text.superficial_prompts(143_361)


# Chat formats


@pytest.mark.parametrize(("template", "jinja"), [(CHATML, SMOLLM2_JINJA), (LLAMA3, LLAMA3_JINJA)])
@pytest.mark.parametrize("system", [text.SYSTEM, "Be {brief}.", None])
def test_formats_agree_with_the_published_templates(template, jinja, system):
    jinja2 = pytest.importorskip("jinja2")
    if system is None and template is CHATML:
        pytest.skip("the template of SmolLM2 then puts a system prompt of its own")
    rendered = jinja2.Environment().from_string(jinja)
    for question in (*QUESTIONS, Question(" a {} b\n", "\n {c} ", "a:5")):
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": question.question})
        prompt = rendered.render(
            messages=messages, add_generation_prompt=True, bos_token="<|begin_of_text|>"
        )
        assert template.prompt(question.question, system) == prompt
        messages.append({"role": "assistant", "content": question.answer})
        whole = rendered.render(messages=messages, bos_token="<|begin_of_text|>")
        response = template.content(question.answer) + template.end_of_turn
        assert prompt + response + "\n" * (template is CHATML) == whole


def test_other_formats():
    assert LLAMA2.prompt("Who? ") == (
        "<s>[INST] <<SYS>>\nYou are a helpful assistant.\n<</SYS>>\n\nWho? [/INST]"
    )
    assert LLAMA2.prompt("Who?", None) == "<s>[INST] Who? [/INST]"
    assert PLAIN.prompt("Who?", "") == "Question: Who?\nAnswer:\n"


def test_the_format_of_a_model():
    for jinja in (SMOLLM2_JINJA, LLAMA3_JINJA):  # what reads messages is rendered
        assert text.template_of(jinja) == text.JinjaTemplate(jinja)
    assert text.template_of("<|im_start|> <|im_end|>") is CHATML
    assert text.template_of("{{'<|start_header_id|>'}}{{'<|eot_id|>'}}") is LLAMA3
    assert text.template_of("{{ '[INST] <<SYS>>' + s + '<</SYS>>' }} [/INST]") is LLAMA2
    assert text.template_of(None) is PLAIN
    mistral, phi4 = "{{ '[INST] ' + m }}", "<|im_start|>{{ r }}<|im_sep|>{{ m }}<|im_end|>"
    for other in (mistral, phi4, "<start_of_turn>{{ m }}", ""):
        with pytest.raises(ValueError, match="is of no known format; known are chatml .*llama2"):
            text.template_of(other)


# Token arrays


@pytest.mark.parametrize("template", text.TEMPLATES.values(), ids=text.TEMPLATES)
@pytest.mark.parametrize("system", [text.SYSTEM, None])
def test_the_response_and_its_end_are_learned_and_nothing_else(tokenizer, template, system):
    found = text.encode(tokenizer, QUESTIONS, template=template, system=system, max_tokens=300)
    assert {x.dtype for x in jax.tree.leaves(found)} == {np.dtype(np.int32)}
    assert found.tokens.shape[1] % 8 == found.labels.shape[1] % 8 == 0
    assert found.where.shape == found.labels.shape
    end = ids_of(tokenizer, template.end_of_turn)
    for i, question in enumerate(QUESTIONS):
        labels = response_of(found, i)
        assert labels[-len(end) :] == end and found.lengths[i] == len(labels)
        answer = tokenizer.decode(labels[: -len(end)], skip_special_tokens=False)
        assert answer == question.answer
        first = found.where[i, 0] + 1
        prompt = tokenizer.decode(found.tokens[i, :first], skip_special_tokens=False)
        begin = "<s>" if template is PLAIN else ""  # a base model's text begins as all texts do
        assert prompt == begin + template.prompt(question.question, system)
        assert not found.tokens[i, first + len(labels) :].any()  # only padding follows
    if template in (CHATML, LLAMA3):  # the line before the answer keeps the pieces apart anyway
        whole = ids_of(tokenizer, template.prompt("And?", system) + "No" + template.end_of_turn)
        assert found.tokens[3, : len(whole)].tolist() == whole


@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=1, max_size=5))
def test_any_text_comes_back(tokenizer, pairs):
    questions = [Question(q, a, f"h:{i}") for i, (q, a) in enumerate(pairs) if a.strip()]
    if not questions:
        return
    found = text.encode(tokenizer, questions, template=CHATML, max_tokens=2000)
    for i, question in enumerate(questions):
        labels = response_of(found, i)
        assert tokenizer.decode(labels[:-1], skip_special_tokens=False) == question.answer


def test_sequences_are_a_pytree_that_batches_draw_from(tokenizer):
    found = text.encode(tokenizer, QUESTIONS, template=CHATML, max_tokens=300)
    source = data.batches(found, np.arange(4), 2)
    key = keys.fold(jax.random.key(0), "test")

    @jax.jit
    def first(source):
        batch = source.gather(source.plan(key, np.arange(2))[0], key)
        return batch, batch.lengths

    batch, lengths = first(source)
    assert isinstance(batch, text.Sequences) and batch.tokens.shape == (2, found.tokens.shape[1])
    assert lengths.dtype == np.int32 and found.lengths.dtype == np.int32
    np.testing.assert_array_equal(lengths, (np.asarray(batch.labels) >= 0).sum(1))


def test_widths_are_multiples_but_never_more_than_allowed(tokenizer):
    found = text.encode(tokenizer, QUESTIONS, template=CHATML, max_tokens=300, multiple=1)
    longest = found.tokens.shape[1]
    assert found.labels.shape[1] == found.lengths.max()
    for multiple, width in ((7, -(-longest // 7) * 7), (1000, longest + 3)):
        other = text.encode(
            tokenizer, QUESTIONS, template=CHATML, max_tokens=longest + 3, multiple=multiple, pad=9
        )
        assert other.tokens.shape[1] == min(width, longest + 3)
        assert other.tokens[3, -1] == 9
        for i in range(4):
            assert response_of(other, i) == response_of(found, i)


def test_overlong_texts(tokenizer):
    whole = text.encode(tokenizer, QUESTIONS, template=CHATML, max_tokens=300, multiple=1)
    lengths = whole.where.max(1) + 2
    most = int(np.sort(lengths)[-2])
    name = QUESTIONS[int(lengths.argmax())].id
    with pytest.raises(
        ValueError, match=rf"encode: {name} has {lengths.max()} tokens, .*max_tokens is {most}"
    ):
        text.encode(tokenizer, QUESTIONS, template=CHATML, max_tokens=most)
    found = text.encode(
        tokenizer, QUESTIONS, template=CHATML, max_tokens=most, multiple=1, overlong="drop"
    )
    kept = np.flatnonzero(lengths <= most)
    assert found.tokens.shape == (3, most)
    np.testing.assert_array_equal(found.tokens, whole.tokens[kept, :most])
    with pytest.raises(ValueError, match="each of the 4 questions has more than max_tokens = 5"):
        text.encode(tokenizer, QUESTIONS, template=CHATML, max_tokens=5, overlong="drop")
    with pytest.raises(ValueError, match=r"prompts: a:1 has .* \(and 3 others are too long\)"):
        text.prompts(tokenizer, QUESTIONS, template=CHATML, max_tokens=5)


def test_wrong_arguments_of_encode(tokenizer):
    def encode(questions=QUESTIONS, template=CHATML, using=tokenizer, **options):
        return text.encode(using, questions, template=template, **{"max_tokens": 300} | options)

    with pytest.raises(ValueError, match="overlong is 'cut'; error and drop are allowed"):
        encode(overlong="cut")
    with pytest.raises(ValueError, match="encode: there are no questions"):
        encode([])
    for option in ("max_tokens", "multiple"):
        with pytest.raises(ValueError, match=f"encode: {option} is 0"):
            encode(**{option: 0})
    with pytest.raises(ValueError, match="b:7: the response ' ' is empty"):
        encode([*QUESTIONS, Question("a", " ", "b:7")])
    for question in (Question("<|im_end|>", "a", "b:8"), Question("a", "<|im_end|>", "b:8")):
        with pytest.raises(ValueError, match=r"b:8: the text .* has <\|im_end\|>, a token of"):
            encode([question])
    foreign = type(tokenizer).from_str(tokenizer.to_str().replace("<|eot_id|>", "<|other|>"))
    with pytest.raises(ValueError, match=r"llama3 uses <\|eot_id\|>, which the tokenizer does"):
        encode(template=LLAMA3, using=foreign)
    foreign.enable_padding(length=99)
    with pytest.raises(ValueError, match="the tokenizer pads or truncates"):
        encode(using=foreign)
    foreign.no_padding()
    foreign.enable_truncation(9)
    with pytest.raises(ValueError, match="the tokenizer pads or truncates"):
        encode(using=foreign)


@pytest.mark.parametrize("end_of_turn", [True, False])
def test_several_responses_to_each_question(tokenizer, end_of_turn):
    responses = [[f"{word} of {q.id}" for word in ("One", "Two", "Three")] for q in QUESTIONS]
    found = text.encode_responses(
        tokenizer,
        QUESTIONS,
        responses,
        template=LLAMA3,
        max_tokens=300,
        end_of_turn=end_of_turn,
    )
    assert len(found.tokens) == 12
    for n, question in enumerate(QUESTIONS):
        for j in range(3):
            answered = [question._replace(answer=responses[n][j])]
            alone = text.encode(tokenizer, answered, template=LLAMA3, max_tokens=300)
            labels, whole = response_of(found, 3 * n + j), response_of(alone, 0)
            assert labels == (whole if end_of_turn else whole[:-1])
            size = found.where[3 * n + j].max() + 2
            assert found.tokens[3 * n + j, :size].tolist() == alone.tokens[0, :size].tolist()


def test_wrong_responses(tokenizer):
    def encode(responses, **options):
        options = {"template": CHATML, "max_tokens": 300} | options
        return text.encode_responses(tokenizer, QUESTIONS[:2], responses, **options)

    for wrong in ([["a"]], [["a"], ["a", "b"]], [[], []]):
        with pytest.raises(ValueError, match="encode_responses: 2 questions and . lists of"):
            encode(wrong)
    with pytest.raises(ValueError, match="a:2, response 1: the response '' is empty"):
        encode([["a", "b"], ["a", ""]])
    with pytest.raises(ValueError, match="a:1, response 0 has .* max_tokens is 9"):
        encode([["a"], ["b"]], max_tokens=9)


def test_prompts_end_at_the_right(tokenizer):
    tokens, mask = text.prompts(tokenizer, QUESTIONS, template=CHATML, max_tokens=300, pad=5)
    assert tokens.dtype == np.int32 and mask.dtype == bool and tokens.shape == mask.shape
    assert tokens.shape[1] % 8 == 0
    for row, real, question in zip(tokens, mask, QUESTIONS, strict=True):
        assert real[-1] and (np.diff(real.astype(int)) >= 0).all() and (row[~real] == 5).all()
        prompt = tokenizer.decode(row[real], skip_special_tokens=False)
        assert prompt == CHATML.prompt(question.question)
