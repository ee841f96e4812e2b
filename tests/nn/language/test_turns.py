"""Chat templates beside weights: their special tokens, and all tokens by which a text ends."""

import dataclasses
import json

import numpy as np
import pytest

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

from jaxunlearn.data import text  # noqa: E402
from jaxunlearn.nn.language import decoder, weights  # noqa: E402
from tests import chat_templates as known  # noqa: E402
from tests.network_files import LLAMA, random_params, write_gguf  # noqa: E402

TOKENIZER = known.tokenizer()
BOS, EOS, MORE = (TOKENIZER.token_to_id(token) for token in ("<s>", "</s>", "<|end|>"))
CONFIG = dataclasses.replace(LLAMA, vocabulary=TOKENIZER.get_vocab_size(), bos=BOS, eos=(EOS,))
ENDS = {"smollm2": "<|im_end|>", "llama3 with a date": "<|eot_id|>", "llama2": "</s>"}
ENDS |= {"gemma, other roles": "<end_of_turn>", "phi3, control of loops": "<|end|>"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("model")
    template = known.TEMPLATES["smollm2"]
    weights.save(made, CONFIG, random_params(CONFIG), tokenizer=TOKENIZER, chat_template=template)
    return made


@pytest.fixture
def settings(folder):
    """What a test changes beside the weights, and has put back."""
    names = ("tokenizer_config.json", "tokenizer.json", "config.json")
    before = {name: (folder / name).read_bytes() for name in names}
    yield folder
    for file in folder.iterdir():
        if file.name in before:
            file.write_bytes(before[file.name])
        elif file.suffix != ".safetensors":
            file.unlink()


def change(file, **entries):
    known_entries = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(known_entries | entries))


@pytest.mark.parametrize("name", ENDS)
def test_all_ends_together(settings, name):
    change(settings / "generation_config.json", eos_token_id=[EOS, 40])
    (settings / "chat_template.jinja").write_text(known.TEMPLATES[name])
    end = TOKENIZER.token_to_id(ENDS[name])
    wanted = tuple(dict.fromkeys((EOS, 40, end)))
    assert decoder.read_config(settings).eos == wanted
    assert dataclasses.replace(decoder.read_config(settings), eos=(EOS,)) == CONFIG
    change(settings / "generation_config.json", eos_token_id=40)
    assert decoder.read_config(settings).eos == wanted


@pytest.mark.parametrize("name", ENDS)
def test_all_ends_of_a_gguf_file(tmp_path, name):
    size = CONFIG.vocabulary
    pieces = json.loads(TOKENIZER.to_str())["model"]
    tokens = sorted(pieces["vocab"], key=pieces["vocab"].get)
    config = dataclasses.replace(CONFIG, eos=(EOS, 40))
    entries = {"tokenizer.ggml.eom_token_id": 41, "tokenizer.chat_template": known.TEMPLATES[name]}
    file = write_gguf(
        tmp_path / "it.gguf",
        config,
        random_params(config),
        entries=entries,
        add_tokenizer_model="gpt2",
        add_tokenizer_pre="gpt-2",
        add_token_list=tokens,
        add_token_types=[3] * len(known.TOKENS) + [1] * (size - len(known.TOKENS)),
        add_token_merges=[" ".join(pair) for pair in pieces["merges"]],
    )
    end = TOKENIZER.token_to_id(ENDS[name])
    assert decoder.read_config(file).eos == tuple(dict.fromkeys((EOS, 40, 41, end)))
    tokenizer, template = decoder.read_tokenizer(file)
    assert template.special_tokens == known.SPECIAL
    question = text.Question("What is it?", "It is that.", "q:1")
    size = CONFIG.vocabulary
    rows = text.Encoder(tokenizer, template, size, 300, 300).sequences([question])
    labels = rows.labels[rows.labels >= 0]
    assert labels[-1] == end and (rows.tokens[0] == BOS).sum() == ("bos" in template)


def test_generation_stops_at_the_end_of_a_turn(settings):
    """Of a network that says it and then goes on, by config alone."""
    end = TOKENIZER.token_to_id("<|im_end|>")
    assert decoder.from_pretrained(settings).config.eos == (EOS, end)
    (settings / "config.json").write_text(
        json.dumps(json.loads((settings / "config.json").read_text()) | {"eos_token_id": None})
    )
    assert decoder.from_pretrained(settings).config.eos == (end,)


@pytest.mark.parametrize("template", ["{% for", "{{ messages and raise_exception('x') }}", "<s>"])
def test_a_template_that_cannot_be_rendered_has_no_end(settings, template):
    (settings / "chat_template.jinja").write_text(template)
    read = decoder.from_pretrained(settings)
    assert read.config == CONFIG and read.chat_template == template
    with pytest.raises(ValueError, match="chat template"):  # but nothing is written with it
        text.Encoder(read.tokenizer, read.chat_template, CONFIG.vocabulary, 128, 128)


MANY = json.dumps({"chat_template": [{"name": n, "template": "x"} for n in ("rag", "tools")]})


def test_files_that_are_broken_are_named(settings):
    for name, content, message in [
        ("generation_config.json", "[", "generation_config.json: it is not a JSON object"),
        ("generation_config.json", '{"eos_token_id": "2"}', "generation_config.json: .*is '2'"),
        ("tokenizer_config.json", "[1]", "tokenizer_config.json: it is not a JSON object"),
        ("tokenizer_config.json", '{"chat_template": 3}', "chat_template is no text"),
        ("tokenizer_config.json", MANY, "templates are rag, tools; none of them is called default"),
        ("tokenizer_config.json", MANY.replace('"rag"', '["rag"]'), "templates are .*rag.*, tools"),
        ("special_tokens_map.json", "{", "special_tokens_map.json: it is not a JSON object"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja: it is not UTF-8"),
    ]:
        file = settings / name
        before = file.read_bytes() if file.is_file() else None
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(ValueError, match=message):
            decoder.read_config(settings)
        file.unlink() if before is None else file.write_bytes(before)


@pytest.mark.parametrize("entry", ["tokens", "token_type"])
def test_a_gguf_file_whose_tokens_are_no_list_is_named(tmp_path, entry):
    entries = {f"tokenizer.ggml.{entry}": 5, "tokenizer.chat_template": known.TEMPLATES["smollm2"]}
    file = write_gguf(tmp_path / "it.gguf", CONFIG, random_params(CONFIG), entries=entries)
    with pytest.raises(ValueError, match="it.gguf: "):
        decoder.read_config(file)


def test_where_special_tokens_stand(settings):
    file, template = (
        settings / "tokenizer_config.json",
        known.TEMPLATES["zephyr, blocks and generation"],
    )
    change(file, chat_template=template, eos_token={"content": "<|end|>", "lstrip": False})
    change(settings / "special_tokens_map.json", eos_token="</s>", unk_token={"content": "<pad>"})
    change(file, bos_token=None, add_bos_token=True)
    read = decoder.read_tokenizer(settings)[1]
    assert read.special_tokens == {"eos_token": "<|end|>", "unk_token": "<pad>"}
    assert decoder.read_config(settings).eos == (EOS, MORE)


def test_a_saved_model_writes_the_same_texts(settings, tmp_path):
    template = known.TEMPLATES["llama2"]
    change(settings / "tokenizer_config.json", chat_template=template, eos_token="<|end|>")
    read = decoder.from_pretrained(settings)
    given = {"tokenizer": read.tokenizer, "chat_template": read.chat_template}
    weights.save(tmp_path, read.config, read.params, **given)
    again = decoder.from_pretrained(tmp_path)
    assert again.config == read.config and again.chat_template == read.chat_template
    assert again.chat_template.special_tokens == read.chat_template.special_tokens
    question = [text.Question("What is it?", "It is that.", "q:1")]
    rows = [
        text.Encoder(one.tokenizer, one.chat_template, one.config.vocabulary, 128, 128)
        for one in (read, again)
    ]
    first, second = (encoder.sequences(question).tokens for encoder in rows)
    np.testing.assert_array_equal(first, second)
