"""Chat templates of models, rendered: where the answer begins and ends, whatever the format."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

from jaxunlearn.core import chat  # noqa: E402
from jaxunlearn.data import text  # noqa: E402
from tests import chat_templates as known  # noqa: E402

TOKENIZER = known.tokenizer()
ENDS = {
    **dict.fromkeys(known.TEMPLATES, "</s>"),
    **dict.fromkeys(("smollm2", "chatml with bos", "qwen3, a thought"), "<|im_end|>"),
    "llama3 with a date": "<|eot_id|>",
    "gemma, other roles": "<end_of_turn>",
    "phi3, control of loops": "<|end|>",
    "llama2": " </s>",
}
QUESTION = text.Question("What is it?", "It is {that}.", "q:1")


def jinja(template):
    return chat.Jinja(template, known.SPECIAL)


def written(template, question=QUESTION, **options):
    """Prompt, prompt for an answer, and response, as the tokens read."""
    options = {"template": text.template_of(template), "max_tokens": 300} | options
    rows = text.encode(TOKENIZER, [question], **options)
    prompts, mask = text.prompts(TOKENIZER, [question], **options)
    read = lambda ids: TOKENIZER.decode(list(ids), skip_special_tokens=False)  # noqa: E731
    labels, start = rows.labels[0][rows.labels[0] >= 0], rows.where[0, 0] + 1
    assert rows.tokens[0, start : start + len(labels)].tolist() == labels.tolist()
    return read(rows.tokens[0, :start]), read(prompts[0, mask[0]]), read(labels)


def messages(system, answer=None):
    turns = [{"role": "system", "content": system}] if system else []
    turns.append({"role": "user", "content": QUESTION.question})
    return turns + ([{"role": "assistant", "content": answer}] if answer else [])


@pytest.mark.parametrize("system", [text.SYSTEM, None])
@pytest.mark.parametrize("name", known.TEMPLATES)
def test_prompt_and_response_are_the_template_s(name, system):
    template, takes = jinja(known.TEMPLATES[name]), not name.endswith(("no system", "other roles"))
    whole = chat.render(
        template, messages(system if takes else None, QUESTION.answer), known.SPECIAL
    )
    asked, prompt, response = written(template, system=system)
    assert asked == prompt and whole.startswith(prompt + response)
    assert response.endswith(QUESTION.answer + ENDS[name])
    assert whole.removeprefix(prompt + response).strip() in ("", "</s>")
    assert prompt == chat.render(
        template, messages(system if takes else None), known.SPECIAL, prompt=True
    )
    assert prompt.startswith("<s>") is ("bos_token" in chat.variables(template))


def test_a_system_prompt_that_a_template_does_not_take_is_refused():
    for name in ("mistral, no system", "gemma, other roles"):
        with pytest.raises(ValueError, match="no turn of the system, but system is 'Be brief.'"):
            written(jinja(known.TEMPLATES[name]), system="Be brief.")


def test_a_header_that_differs_where_the_answer_is_there():
    asked, prompt, response = written(jinja(known.THINKS))
    assert prompt == "<s><|user|>What is it?<|assistant|><think>\n"  # to generate from
    assert asked == "<s><|user|>What is it?<|assistant|>" and response == QUESTION.answer + "</s>"


def test_a_template_without_an_end_takes_the_tokenizer_s():
    asked, prompt, response = written(jinja(known.ALPACA))
    assert asked == prompt and prompt.endswith("### Response:\n")
    assert response == QUESTION.answer + "</s>"


@pytest.mark.parametrize("template", [None, *known.TEMPLATES.values()])
def test_texts_begin_once(template):
    """A base model's as the tokenizer begins every text, others as the template says."""
    for begins in (True, False):
        made = known.tokenizer(post_processor=begins)
        encoder = text.Encoder(made, template and jinja(template), 400, 300, 300)
        rows, bos = encoder.sequences([QUESTION]), known.TOKENS.index("<s>")
        named = template is not None and "bos_token" in chat.variables(template)
        begun = named or (template is None and begins)
        assert (rows.tokens[0] == bos).sum() == begun and (rows.tokens[0, 0] == bos) == begun


@given(st.text(min_size=1), st.text(min_size=1))
def test_any_text_comes_back(question, answer):
    if not answer.strip() or any(token in question + answer for token in known.TOKENS):
        return
    template = jinja(known.TEMPLATES["chatml with bos"])
    asked, _, response = written(template, text.Question(question, answer, "h"), max_tokens=4000)
    assert response == answer + "<|im_end|>" and question in asked


def test_a_special_token_in_a_text_is_refused():
    template = jinja(known.TEMPLATES["smollm2"])
    for token in ("<|im_end|>", "<s>", "</think>"):
        for question in (text.Question(token, "a", "b:8"), text.Question("a", token, "b:8")):
            with pytest.raises(ValueError, match=rf"b:8: the text .* has {re.escape(token)}, a"):
                written(template, question)


def test_a_token_of_the_format_is_refused_even_if_it_is_not_special():
    made = known.tokenizer()
    made.add_tokens(["<|turn|>", "<|over|>", "<note>"])
    template = jinja(
        "{% for m in messages %}<|turn|>{{ m.role }}: {{ m.content }}<|over|>{% endfor %}"
        "{% if add_generation_prompt %}<|turn|>assistant: {% endif %}"
    )
    encoder = text.Encoder(made, template, made.get_vocab_size(), 300, 300)
    for token in ("<|turn|>", "<|over|>"):
        with pytest.raises(ValueError, match=rf"q:1: the text .* has {re.escape(token)}, a token"):
            encoder.sequences([QUESTION._replace(answer=f"a {token}")])
    labels = encoder.sequences([QUESTION._replace(answer="a <note>")]).labels
    end, note = (made.token_to_id(token) for token in ("<|over|>", "<note>"))
    assert labels[labels >= 0].tolist()[-2:] == [note, end]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for", "is not Jinja"),
        ("{% for m in messages %}{{ m['value'] }}{% endfor %}", "does not write the answer"),
        (
            "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}{% endif %}"
            "{% endfor %}",
            "does not write the question",
        ),
        ("{{ messages[5]['content'] }}", "fails .*UndefinedError"),
        ("{{ messages and raise_exception('never') }}", "fails .*never"),
        ("{{ messages.__class__.__mro__ }}", "fails .*SecurityError"),
        ("{{ messages.append(1) }}", "fails .*SecurityError"),
        ("{% for i in range(10**7) %}{{ messages }}{% endfor %}", "fails .*OverflowError"),
    ],
)
def test_templates_that_cannot_be_used(template, message):
    with pytest.raises(ValueError, match=message):
        text.Encoder(TOKENIZER, jinja(template), 400, 300, 300)


def test_special_tokens_that_are_not_known_are_named():
    template = known.TEMPLATES["zephyr, blocks and generation"]
    with pytest.raises(ValueError, match="writes eos_token, which a text alone does not tell"):
        text.Encoder(TOKENIZER, template, 400, 300, 300)
    begun = known.TEMPLATES["chatml with bos"]  # the tokenizer says how texts begin
    assert text.Encoder(TOKENIZER, begun, 400, 300, 300).sequences([QUESTION]).tokens[0, 0] == 1
    with pytest.raises(ValueError, match="writes bos_token"):
        text.Encoder(known.tokenizer(post_processor=False), begun, 400, 300, 300)


def test_the_time_can_be_fixed(monkeypatch):
    template = jinja(known.TEMPLATES["llama3 with a date"])
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert "Today Date: 02 Jan 1970" in written(template)[0]


@pytest.mark.parametrize("make", ["sequences", "prompts", "responses", "encode_responses"])
@pytest.mark.parametrize("where", ["question", "answer"])
def test_every_encoder_looks_at_the_vocabulary(make, where):
    made = known.tokenizer()
    size = made.get_vocab_size()
    made.add_tokens(["[TOOL]"])  # no special one, which would be refused anyway
    encoder = text.Encoder(made, None, size, 300, 300)
    said = QUESTION._replace(**{where: "call [TOOL] now"})
    plain = {"template": text.TEMPLATES["plain"], "max_tokens": 300, "vocabulary": size}
    calls = {
        "sequences": lambda q: encoder.sequences([q]),
        "prompts": lambda q: encoder.prompts([q._replace(question=getattr(q, where))]),
        "responses": lambda q: encoder.responses([q], ("fine", q.answer)),
        "encode_responses": lambda q: text.encode_responses(made, [q], [[q.answer]], **plain),
    }
    calls[make](QUESTION)
    with pytest.raises(ValueError, match=rf"q:1.* gives the token {size}; the network knows 0 to"):
        calls[make](said)
