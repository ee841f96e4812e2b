"""Tokenizers of GGUF files and of folders."""

import dataclasses
import itertools
import json

import pytest

from jaxunlearn.nn.language import decoder, weights
from jaxunlearn.nn.language.tokenizers import of_gguf
from tests.network_files import (
    LLAMA,
    random_params,
    write_gguf,
)

tokenizers = pytest.importorskip("tokenizers")


def trained(pre):
    """A byte-level tokenizer with a pre-tokenizer of its own, as `tokenizer.json` would have it."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = pre
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([TEXT] * 20, trainer)
    return made


TEXT = (
    "The cat's 12345 mice, they'LL run;  two   spaces\n\n\tand a tab. Größe 日本 x=3.14\r\n  end "
    "THE CATS weren't there (in 1999)!!! e\u0301 ½ ٣٤"
)
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split_by(pattern):
    pre = tokenizers.pre_tokenizers
    return pre.Sequence(
        [
            pre.Split(tokenizers.Regex(pattern), "isolated"),
            pre.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def pre_tokenizer(name):
    pre = tokenizers.pre_tokenizers
    plain = pre.ByteLevel(add_prefix_space=False)
    return {
        "gpt-2": plain,
        "smollm": pre.Sequence([pre.Digits(individual_digits=True), plain]),
        "llama-bpe": split_by(WORDS % "{1,3}"),
        "qwen2": split_by(WORDS % ""),
    }[name]


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_byte_level_tokenizer_of_a_gguf_file(tmp_path, name):
    want = trained(pre_tokenizer(name))
    if name == "qwen2":
        want.normalizer = tokenizers.normalizers.NFC()
    model = json.loads(want.to_str())["model"]
    vocabulary = sorted(model["vocab"], key=model["vocab"].get)
    config = dataclasses.replace(
        LLAMA, vocabulary=len(vocabulary) + 2, bos=vocabulary.index("<|begin|>"), eos=(1,)
    )
    kinds = [3, 3] + [1] * (len(vocabulary) - 2) + [4, 5]
    file = write_gguf(
        tmp_path / "it.gguf",
        config,
        random_params(config),
        add_tokenizer_model="gpt2",
        add_tokenizer_pre=name,
        add_token_list=[*vocabulary, "<think>", "[PAD1]"],
        add_token_types=kinds,
        add_token_merges=[" ".join(pair) for pair in model["merges"]],
        add_add_bos_token=name == "llama-bpe",
        add_chat_template="{{ messages }}",
    )
    read = decoder.from_pretrained(file)
    assert read.config == config
    assert read.chat_template == "{{ messages }}"
    got, template = decoder.read_tokenizer(file)
    assert template == read.chat_template and got.to_str() == read.tokenizer.to_str()
    begin = [0] if name == "llama-bpe" else []
    assert got.encode(TEXT).ids == begin + want.encode(TEXT).ids
    assert got.encode(TEXT, add_special_tokens=False).ids == want.encode(TEXT).ids
    assert got.encode("").ids == begin
    text = TEXT if name != "qwen2" else TEXT.replace("e\u0301", "é")
    assert got.decode(got.encode(TEXT).ids) == text
    think = len(vocabulary)
    for token, i in {"<|begin|>": 0, "<|end|>": 1, "<think>": think}.items():
        assert got.encode(token, add_special_tokens=False).ids == [i]
        assert got.encode(f"a{token}b", add_special_tokens=False).ids[1] == i
    assert got.decode([1, think]) == "<think>"  # control tokens are left out
    assert got.token_to_id("[PAD1]") is None
    digits = got.encode("1234", add_special_tokens=False).tokens
    if name in ("smollm", "qwen2"):
        assert digits == ["1", "2", "3", "4"]


def test_unknown_pre_tokenizer(tmp_path):
    file = write_gguf(
        tmp_path / "it.gguf",
        LLAMA,
        random_params(LLAMA),
        add_tokenizer_model="gpt2",
        add_tokenizer_pre="tekken",
        add_token_list=["a"],
    )
    with pytest.raises(ValueError, match="it.gguf: tokenizer.ggml.pre is 'tekken'; known are"):
        decoder.from_pretrained(file)


PLAIN = {"model": "gpt2", "pre": "gpt-2", "tokens": ["a", "b", "ab", "<s>", "</s>"]}
PLAIN |= {"merges": ["a b"], "token_type": [1, 1, 1, 3, 3], "bos_token_id": 3, "eos_token_id": 4}
PIECES = {"model": "llama", "tokens": ["<unk>", "<s>", "</s>", "▁", "a", "b", "ab", "c", "<x>"]}
PIECES |= {"token_type": [2, 3, 3, 1, 1, 1, 1, 5, 4], "scores": [0.0] * 3 + [-1.0] * 6}
PIECES |= {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}


def of_entries(entries):
    return of_gguf({f"tokenizer.ggml.{name}": value for name, value in entries.items()})


@pytest.mark.parametrize(
    ("base", "change", "message"),
    [
        (PLAIN, {"pre": None}, "tokenizer.ggml.pre is missing; known are 'gpt-2', .*Hugging Face"),
        (PLAIN, {"pre": "default"}, "tokenizer.ggml.pre is 'default'; known are"),
        (PLAIN, {"pre": "refact"}, "tokenizer.ggml.pre is 'refact'; known are"),
        (PLAIN, {"token_type": None}, "token_type is missing"),
        (PLAIN, {"token_type": [1, 1]}, "token_type has 2 entries, for 5"),
        (PLAIN, {"token_type": [1, 1, 1, 3, 7]}, r"token_type has \[7\]; 1 to 6 are known"),
        (PLAIN, {"token_type": "11133"}, "token_type is broken"),
        (PLAIN, {"tokens": [1, 2, 3, 4, 5]}, "tokens is broken"),
        (PLAIN, {"merges": None}, "merges is missing"),
        (PLAIN, {"merges": ["a c"]}, "tokens and merges make no tokenizer"),
        (PLAIN, {"merges": ["ab"]}, "tokens and merges make no tokenizer"),
        (PLAIN, {"bos_token_id": 5}, "bos_token_id is 5; 0 to 4 are tokens"),
        (PLAIN, {"eos_token_id": "x"}, "eos_token_id is x"),
        (PLAIN, {"add_sep_token": True}, "add_sep_token is set, which is not computed"),
        (PLAIN, {"model": "bert"}, "tokenizer.ggml.model is 'bert'"),
        (PIECES, {"scores": None}, "scores is missing"),
        (PIECES, {"scores": [0.0]}, "scores has 1 entries, for 9"),
        (PIECES, {"unknown_token_id": 9}, "unknown_token_id is 9"),
        (PIECES, {"remove_extra_whitespaces": True}, "remove_extra_whitespaces is set"),
        (PIECES, {"precompiled_charsmap": [1]}, "precompiled_charsmap is set"),
    ],
)
def test_entries_that_are_not_understood_are_named(base, change, message):
    of_entries(base)
    entries = {name: value for name, value in (base | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        of_entries(entries)


def test_kinds_of_tokens():
    made = of_entries(PIECES)
    # An unused token is never produced; what nothing stands for is <unk>, which is no text.
    assert made.encode("ab").ids == [1, 3, 6] and made.token_to_id("c") is None
    assert made.encode("c").ids == [1, 3, 0] and made.decode([1, 0, 4, 2]) == "a"
    for text, token in {"<unk>": 0, "</s>": 2, "<x>": 8}.items():
        assert token in made.encode(text, add_special_tokens=False).ids
    assert made.decode([8]) == "<x>"  # users' own tokens are text
    assert made.decode([1, 0, 2], skip_special_tokens=False) == "<unk>".join(("<s>", "</s>"))


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("ends", [False, True])
def test_texts_begin_and_end_as_the_file_says(begins, ends):
    made = of_entries(PLAIN | {"add_bos_token": begins, "add_eos_token": ends})
    assert made.encode("ab").ids == [3] * begins + [2] + [4] * ends
    assert made.encode("ab", "a").ids == [3] * begins + [2] + [4] * ends + [3] * begins + [0] + (
        [4] * ends
    )
    assert made.encode("ab", add_special_tokens=False).ids == [2]


def sentence_piece(text, scores):
    """The algorithm of SentencePiece's BPE: joins the best-scored neighbours, leftmost first."""
    pieces = list("▁" + text.replace(" ", "▁"))
    while True:
        joins = [
            (-scores[a + b], i)
            for i, (a, b) in enumerate(itertools.pairwise(pieces))
            if a + b in scores
        ]
        if not joins:
            break
        _, i = min(joins)
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
    out = []
    for piece in pieces:
        out += [piece] if piece in scores else [f"<0x{byte:02X}>" for byte in piece.encode()]
    return out


def test_sentence_piece_tokenizer_of_a_gguf_file(tmp_path):
    words = ["▁t", "he", "▁the", "in", "▁c", "at", "▁cat", "er", "ing", "▁in", "the", "▁▁", "ch"]
    letters = sorted(set("▁abcdefghijklmnopqrstuvwxyz.,"))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words, *letters]
    kinds = [2, 3, 3] + [6] * 256 + [1] * (len(words) + len(letters))
    scores = [0.0] * 259 + [-float(i) for i in range(len(words) + len(letters))]
    config = dataclasses.replace(LLAMA, vocabulary=len(tokens), eos=(2,))
    file = write_gguf(
        tmp_path / "it.gguf",
        config,
        random_params(config),
        add_tokenizer_model="llama",
        add_token_list=tokens,
        add_token_types=kinds,
        add_token_scores=scores,
        add_unk_token_id=0,
    )
    tokenizer = decoder.from_pretrained(file).tokenizer
    known = dict(zip(tokens[259:], scores[259:], strict=True))
    for text in [
        "the cat in there",
        "  catching   things",
        "Ünder 日本\n",
        "x",
        "theinthe",
        "a.b ",
    ]:
        encoded = tokenizer.encode(text)
        assert encoded.tokens == ["<s>", *sentence_piece(text, known)], text
        assert tokenizer.decode(encoded.ids) == text
    assert tokenizer.encode("</s>", add_special_tokens=False).ids == [2]


def test_tokenizer_of_a_folder(tmp_path):
    made = trained(pre_tokenizer("smollm"))
    made.enable_truncation(3)
    made.enable_padding(length=8)
    config = dataclasses.replace(LLAMA, vocabulary=made.get_vocab_size(), bos=0, eos=(1,))
    params = random_params(config)
    weights.save(tmp_path, config, params, tokenizer=made, chat_template="{{ a }}")
    read = decoder.from_pretrained(tmp_path)
    want = trained(pre_tokenizer("smollm")).encode(TEXT).ids
    assert read.tokenizer.encode(TEXT).ids == want  # neither cut nor padded
    assert read.chat_template == "{{ a }}"
    again, template = decoder.read_tokenizer(tmp_path)
    assert template == "{{ a }}" and again.to_str() == read.tokenizer.to_str()
    settings = tmp_path / "tokenizer_config.json"
    assert json.loads(settings.read_text())["eos_token"] == "<|end|>"
    settings.write_text(
        json.dumps(
            {
                "chat_template": [
                    {"name": "tool_use", "template": "{{ b }}"},
                    {"name": "default", "template": "{{ c }}"},
                ]
            }
        )
    )
    assert decoder.from_pretrained(tmp_path).chat_template == "{{ c }}"
    (tmp_path / "chat_template.jinja").write_text("{{ d }}")
    assert decoder.from_pretrained(tmp_path).chat_template == "{{ d }}"
    weights.save(tmp_path, config, params, tokenizer=made, chat_template="{{ e }}")
    assert decoder.from_pretrained(tmp_path).chat_template == "{{ e }}"
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="tokenizer.json: no tokenizer"):
        decoder.from_pretrained(tmp_path)
