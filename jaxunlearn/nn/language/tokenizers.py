"""Tokenizers of pretrained decoders, with the chat template beside them, from either format."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxunlearn.core.extras import MissingPackageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Kinds of tokens in a GGUF file.
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {"llama-bpe": _WORDS % "{1,3}", "qwen2": _WORDS % ""}
_PRE_TOKENIZERS = ("default", "gpt-2", "smollm", *_SPLITS)


def from_folder(path: Path) -> "tuple[Tokenizer | None, str | None]":
    """Tokenizer and chat template of a Hugging Face folder, each None where it has none.

    Raises:
        ValueError: a file that cannot be read as what it is.
        MissingPackageError: there is a tokenizer, but not the package.
    """
    tokenizer = None
    if (path / "tokenizer.json").is_file():
        tokenizers = _package()
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
        except Exception as error:  # the package raises nothing narrower
            raise ValueError(f"{path / 'tokenizer.json'}: no tokenizer ({error})") from error
        tokenizer.no_padding()  # files keep what was set when they were saved
        tokenizer.no_truncation()
    if (path / "chat_template.jinja").is_file():
        return tokenizer, (path / "chat_template.jinja").read_text(encoding="utf-8")
    settings = path / "tokenizer_config.json"
    try:
        template = (
            json.loads(settings.read_bytes()).get("chat_template") if settings.is_file() else None
        )
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{settings}: it is not a JSON object") from error
    if isinstance(template, list):  # several, by name
        template = {one["name"]: one["template"] for one in template}.get("default")
    return tokenizer, template


def from_gguf(metadata: Mapping[str, Any]) -> "tuple[Tokenizer | None, str | None]":
    """Tokenizer and chat template from the metadata of a GGUF file, each None where it has none.

    The tokenizer encodes as the original `tokenizer.json` does. Control tokens are special: text
    that spells one becomes its single id, and `decode` leaves it out unless told otherwise.

    Raises:
        ValueError: a kind of tokenizer that is not known here.
        MissingPackageError: there is a tokenizer, but not the package.
    """
    template = metadata.get("tokenizer.chat_template")
    entries = {
        name.removeprefix("tokenizer.ggml."): value
        for name, value in metadata.items()
        if name.startswith("tokenizer.ggml.")
    }
    kind = entries.get("model", "none")
    if kind == "none" or "tokens" not in entries:
        return None, template
    if kind not in ("gpt2", "llama"):
        raise ValueError(f"tokenizer.ggml.model is {kind!r}; 'gpt2' and 'llama' are known")
    kinds = entries.get("token_type") or [_NORMAL] * len(entries["tokens"])
    tokenizer = _byte_level(entries, kinds) if kind == "gpt2" else _sentence_piece(entries, kinds)
    added = {_CONTROL: tokenizer.add_special_tokens, _USER_DEFINED: tokenizer.add_tokens}
    for whole, add in added.items():
        texts = [text for text, one in zip(entries["tokens"], kinds, strict=True) if one == whole]
        options = {"special": whole == _CONTROL, "normalized": False}
        add([_package().AddedToken(text, **options) for text in texts])
    # What llama.cpp takes for files that do not say.
    begins = entries.get("add_bos_token", kind == "llama" or entries.get("pre") == "llama-bpe")
    if begins and "bos_token_id" in entries:
        bos = entries["bos_token_id"]
        text = entries["tokens"][bos]
        tokenizer.post_processor = _package().processors.TemplateProcessing(
            single=[text, "$A"], pair=[text, "$A", text, "$B:1"], special_tokens=[(text, bos)]
        )
    return tokenizer, template


def _byte_level(entries: dict[str, Any], kinds: list[int]) -> "Tokenizer":
    """BPE over bytes, as of GPT-2, with the pre-tokenizer that the file names."""
    tokenizers = _package()
    name = entries.get("pre", "default")
    if name not in _PRE_TOKENIZERS:
        raise ValueError(
            f"tokenizer.ggml.pre is {name!r}; known are {', '.join(map(repr, _PRE_TOKENIZERS))}"
        )
    vocabulary = {
        text: i
        for i, (text, kind) in enumerate(zip(entries["tokens"], kinds, strict=True))
        if kind != _UNUSED
    }
    merges = [tuple(pair.split(" ")) for pair in entries["merges"]]
    # Llama 3 takes words that are in the vocabulary whole, whatever the merges give.
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocabulary, merges, ignore_merges=name == "llama-bpe")
    )
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
    vocabulary = {text: i for i, text in enumerate(tokens)}
    mergeable = {text for text, kind in zip(tokens, kinds, strict=True) if kind == _NORMAL}
    scored, lengths = [], {len(text) for text in mergeable} - {0}  # few, even if a token is long
    for text, score in zip(tokens, entries["scores"], strict=True):
        for at in {at for at in lengths if at < len(text)} if text in mergeable else ():
            if text[:at] in mergeable and text[at:] in mergeable:
                scored.append((score, text[:at], text[at:]))
    # The better score first; of several ways to one token, that of the longer left part.
    scored.sort(key=lambda merge: (-merge[0], -len(merge[1]), -len(merge[2])))
    unknown = entries.get("unknown_token_id", 0)
    merges = [merge[1:] for merge in scored]
    how = {"unk_token": tokens[unknown], "fuse_unk": True, "byte_fallback": True}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges, **how))
    normalizers, decoders = tokenizers.normalizers, tokenizers.decoders
    before = [normalizers.Replace(" ", "▁")]
    after = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if entries.get("add_space_prefix", True):
        before.insert(0, normalizers.Prepend("▁"))
        after.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(before)
    tokenizer.decoder = decoders.Sequence(after)
    return tokenizer


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
    if chat_template is not None:
        settings["chat_template"] = chat_template
    return {
        "tokenizer.json": tokenizer.to_str(pretty=True),
        "tokenizer_config.json": json.dumps(settings, indent=2, ensure_ascii=False),
    }
