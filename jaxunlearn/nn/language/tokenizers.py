"""Tokenizers of pretrained decoders, from either format."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxunlearn.core.chat import Jinja
from jaxunlearn.core.extras import MissingPackageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Kinds of tokens in a GGUF file.
KINDS = range(1, 7)
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, _BYTE = KINDS
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {"llama-bpe": _WORDS % "{1,3}", "qwen2": _WORDS % ""}
_PRE_TOKENIZERS = ("gpt-2", "smollm", *_SPLITS)
# Entries that change how text becomes tokens, and what is computed of each; others do not.
_COMPUTED = {
    "add_sep_token": False,
    "remove_extra_whitespaces": False,
    "precompiled_charsmap": None,
}


def of_folder(path: Path) -> "Tokenizer | None":
    """The tokenizer of a Hugging Face folder, None where it has none.

    Raises:
        ValueError: a file that cannot be read as what it is.
        MissingPackageError: there is a tokenizer, but not the package.
    """
    if not (path / "tokenizer.json").is_file():
        return None
    tokenizers = _package()
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    except Exception as error:  # the package raises nothing narrower
        raise ValueError(f"{path / 'tokenizer.json'}: no tokenizer ({error})") from error
    tokenizer.no_padding()  # files keep what was set when they were saved
    tokenizer.no_truncation()
    return tokenizer


def of_gguf(metadata: Mapping[str, Any]) -> "Tokenizer | None":
    """The tokenizer in the metadata of a GGUF file, None where it has none.

    It encodes as the original `tokenizer.json` does. Control tokens are special: text that spells
    one becomes its single id, and `decode` leaves it out unless told otherwise.

    Raises:
        ValueError: a kind of tokenizer that is not known here, or an entry that is missing or
            broken.
        MissingPackageError: there is a tokenizer, but not the package.
    """
    entries = {
        name.removeprefix("tokenizer.ggml."): value
        for name, value in metadata.items()
        if name.startswith("tokenizer.ggml.")
    }
    kind = entries.get("model", "none")
    if kind == "none" or "tokens" not in entries:
        return None
    if kind not in ("gpt2", "llama"):
        raise ValueError(f"tokenizer.ggml.model is {kind!r}; 'gpt2' and 'llama' are known")
    if kind == "gpt2":
        _check_pre_tokenizer(entries)
    kinds = _checked(entries, kind)
    tokenizer = _byte_level(entries, kinds) if kind == "gpt2" else _sentence_piece(entries, kinds)
    for special, whole in ((True, (UNKNOWN, CONTROL)), (False, (USER_DEFINED,))):
        texts = [text for text, one in zip(entries["tokens"], kinds, strict=True) if one in whole]
        options = {"special": special, "normalized": False}
        added = [_package().AddedToken(text, **options) for text in texts]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)
    # What llama.cpp takes for files that do not say.
    begins = entries.get("add_bos_token", kind == "llama" or entries.get("pre") == "llama-bpe")
    ends = entries.get("add_eos_token", False)
    bos, eos = (entries.get(f"{name}_token_id") for name in ("bos", "eos"))
    _surround(tokenizer, entries["tokens"], bos if begins else None, eos if ends else None)
    return tokenizer


def _surround(tokenizer: "Tokenizer", tokens: list[str], bos: int | None, eos: int | None) -> None:
    """Has a tokenizer begin and end every text with a token, where there is one."""
    first, last = ([] if one is None else [tokens[one]] for one in (bos, eos))
    if first or last:
        once = [(tokens[one], one) for one in dict.fromkeys((bos, eos)) if one is not None]
        pair = [*first, "$A", *last, *(f"{text}:1" for text in first), "$B:1"]
        pair += [f"{text}:1" for text in last]
        tokenizer.post_processor = _package().processors.TemplateProcessing(
            single=[*first, "$A", *last], pair=pair, special_tokens=once
        )


def _check_pre_tokenizer(entries: dict[str, Any]) -> None:
    # "default" is what llama.cpp takes without an entry; its text was not split by that.
    name = entries.get("pre", "default")
    if name not in _PRE_TOKENIZERS:
        known = ", ".join(map(repr, _PRE_TOKENIZERS))
        state = "missing" if "pre" not in entries else repr(name)
        raise ValueError(
            f"tokenizer.ggml.pre is {state}; known are {known}; without it no text becomes the "
            "tokens that the network was trained on: take a file that a newer llama.cpp wrote, or "
            "the model's Hugging Face folder"
        )


def _checked(entries: dict[str, Any], kind: str) -> list[int]:
    """The kinds of all tokens, after a look at every entry that is used."""
    tokens = entries["tokens"]
    texts = {"tokens": str, "merges": str} if kind == "gpt2" else {"tokens": str}
    lists = texts | {"token_type": int} | ({} if kind == "gpt2" else {"scores": float})
    for name, of in lists.items():
        value = entries.get(name)
        if not isinstance(value, list) or not all(isinstance(one, of) for one in value):
            state = "missing" if value is None else "broken"
            raise ValueError(f"tokenizer.ggml.{name} is {state}; a list of {of.__name__} is needed")
        if name != "merges" and len(value) != len(tokens):
            raise ValueError(f"tokenizer.ggml.{name} has {len(value)} entries, for {len(tokens)}")
    if unknown := set(entries["token_type"]) - set(KINDS):
        raise ValueError(f"tokenizer.ggml.token_type has {sorted(unknown)}; 1 to 6 are known")
    for name, computed in _COMPUTED.items():
        if entries.get(name, computed) != computed:
            raise ValueError(f"tokenizer.ggml.{name} is set, which is not computed")
    for name in ("bos", "eos", "unknown"):
        token = entries.get(f"{name}_token_id", 0)
        if not isinstance(token, int) or not 0 <= token < len(tokens):
            raise ValueError(
                f"tokenizer.ggml.{name}_token_id is {token}; 0 to {len(tokens) - 1} are tokens"
            )
    return entries["token_type"]


def _byte_level(entries: dict[str, Any], kinds: list[int]) -> "Tokenizer":
    """BPE over bytes, as of GPT-2, with the pre-tokenizer that the file names."""
    tokenizers = _package()
    name = entries["pre"]
    vocabulary = {
        text: i
        for i, (text, kind) in enumerate(zip(entries["tokens"], kinds, strict=True))
        if kind != UNUSED
    }
    merges = [tuple(pair.split(" ", 1)) for pair in entries["merges"]]
    # Llama 3 takes words that are in the vocabulary whole, whatever the merges give.
    tokenizer = _merging(vocabulary, merges, ignore_merges=name == "llama-bpe")
    pre = tokenizers.pre_tokenizers
    prefix = bool(entries.get("add_space_prefix", False))
    if name in _SPLITS:
        first = [pre.Split(tokenizers.Regex(_SPLITS[name]), "isolated")]
    else:
        first = [pre.Digits(individual_digits=True)] if name == "smollm" else []
    last = pre.ByteLevel(add_prefix_space=prefix, use_regex=name not in _SPLITS)
    tokenizer.pre_tokenizer = pre.Sequence([*first, last])
    if name == "qwen2":
        tokenizer.normalizer = tokenizers.normalizers.NFC()
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return tokenizer


def _sentence_piece(entries: dict[str, Any], kinds: list[int]) -> "Tokenizer":
    """BPE over characters that falls back to bytes, as of Llama 2; merges follow from scores."""
    tokenizers = _package()
    tokens = entries["tokens"]
    used = [one != UNUSED for one in kinds]
    vocabulary = {text: i for i, text in enumerate(tokens) if used[i]}
    mergeable = {text for text, kind in zip(tokens, kinds, strict=True) if kind == NORMAL}
    scored, lengths = [], {len(text) for text in mergeable} - {0}  # few, even if one is long
    for text, score in zip(tokens, entries["scores"], strict=True):
        for at in {at for at in lengths if at < len(text)} if text in mergeable else ():
            if text[:at] in mergeable and text[at:] in mergeable:
                scored.append((score, text[:at], text[at:]))
    # The better score first; of several ways to one token, that of the longer left part.
    scored.sort(key=lambda merge: (-merge[0], -len(merge[1]), -len(merge[2])))
    unknown = entries.get("unknown_token_id", 0)
    merges = [merge[1:] for merge in scored]
    how = {"unk_token": tokens[unknown], "fuse_unk": True, "byte_fallback": True}
    tokenizer = _merging(vocabulary, merges, **how)
    normalizers, decoders = tokenizers.normalizers, tokenizers.decoders
    before = [normalizers.Replace(" ", "▁")]
    after = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if entries.get("add_space_prefix", True):
        before.insert(0, normalizers.Prepend("▁"))
        after.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(before)
    tokenizer.decoder = decoders.Sequence(after)
    return tokenizer


def _merging(vocabulary: dict[str, int], merges: list, **options: Any) -> "Tokenizer":
    tokenizers = _package()
    try:
        return tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges, **options))
    except Exception as error:  # the package raises nothing narrower
        raise ValueError(f"tokenizer.ggml.tokens and merges make no tokenizer ({error})") from error


def _package() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise MissingPackageError("the tokenizer", "tokenizers") from error
    return tokenizers


def files(
    tokenizer: "Tokenizer", chat_template: str | None, bos: int | None, eos: int | None
) -> dict[str, str]:
    """Content of the files that stand for a tokenizer in a Hugging Face folder, by name."""
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for name, token in {"bos_token": bos, "eos_token": eos}.items():
        if token is not None:
            settings[name] = tokenizer.id_to_token(token)
    if isinstance(chat_template, Jinja):  # what it may write stays what it was
        settings |= chat_template.special_tokens
    if chat_template is not None:
        settings["chat_template"] = chat_template
    return {
        "tokenizer.json": tokenizer.to_str(pretty=True),
        "tokenizer_config.json": json.dumps(settings, indent=2, ensure_ascii=False),
    }
