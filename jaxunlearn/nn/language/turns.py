"""Chat templates that come with decoders, and the token by which a template ends an answer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxunlearn.core import chat
from jaxunlearn.nn.files.configs import read_json
from jaxunlearn.nn.language.tokenizers import CONTROL, USER_DEFINED

# What templates call special tokens, and whose numbers a GGUF file has.
_NAMED = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def template_of_folder(path: Path) -> chat.Jinja | None:
    """The chat template of a Hugging Face folder, which knows the tokenizer's special tokens.

    Raises:
        ValueError: a file beside the weights is not what it should be.
    """
    settings = _json(path / "tokenizer_config.json")
    template = settings.get("chat_template")
    if (path / "chat_template.jinja").is_file():
        try:
            template = (path / "chat_template.jinja").read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path / 'chat_template.jinja'}: it is not UTF-8") from error
    elif isinstance(template, list):  # several, by name
        named = [one for one in template if isinstance(one, dict)]
        template = _default({str(one.get("name")): one.get("template") for one in named}, path)
    if not isinstance(template, str | None):
        raise ValueError(f"{path / 'tokenizer_config.json'}: chat_template is no text")
    if template is None:
        return None
    named = _json(path / "special_tokens_map.json") | settings
    texts = {
        name: token.get("content") if isinstance(token, dict) else token
        for name, token in named.items()
        if name.endswith("_token")
    }
    return chat.Jinja(template, {k: text for k, text in texts.items() if isinstance(text, str)})


def _default(templates: dict[str, Any], path: Path) -> Any:
    if templates and "default" not in templates:
        names = ", ".join(templates)
        raise ValueError(
            f"{path / 'tokenizer_config.json'}: the chat templates are {names}; none of them is "
            "called default: write the one to use as chat_template.jinja"
        )
    return templates.get("default")


def template_of_gguf(metadata: Mapping[str, Any]) -> chat.Jinja | None:
    """The chat template of a GGUF file, likewise.

    Raises:
        ValueError: it is no text.
    """
    template = metadata.get("tokenizer.chat_template")
    if template is None and (others := metadata.get("tokenizer.chat_templates")):
        raise ValueError(f"tokenizer.chat_templates are {others}; none of them is the default")
    if not isinstance(template, str | None):
        raise ValueError(
            f"tokenizer.chat_template is a {type(template).__name__}; a text is needed"
        )
    if template is None:
        return None
    tokens = metadata.get("tokenizer.ggml.tokens") or []
    ids = {k: metadata.get(f"tokenizer.ggml.{name}_token_id") for k, name in _NAMED.items()}
    texts = {
        f"{k}_token": tokens[i]
        for k, i in ids.items()
        if isinstance(i, int) and 0 <= i < len(tokens)
    }
    return chat.Jinja(template, texts)


def added_of_folder(path: Path) -> dict[str, int]:
    """Texts of a folder's tokenizer that stand for one token each, with their numbers."""
    added = _json(path / "tokenizer.json").get("added_tokens")
    entries = [one for one in added if isinstance(one, dict)] if isinstance(added, list) else []
    pairs = ((one.get("content"), one.get("id")) for one in entries)
    return {text: i for text, i in pairs if isinstance(text, str) and isinstance(i, int)}


def added_of_gguf(metadata: Mapping[str, Any]) -> dict[str, int]:
    """The same of a GGUF file: its control tokens and those that users defined."""
    kinds = metadata.get("tokenizer.ggml.token_type") or []
    tokens = metadata.get("tokenizer.ggml.tokens") or []
    pairs = enumerate(zip(tokens, kinds, strict=False))
    return {text: i for i, (text, kind) in pairs if kind in (CONTROL, USER_DEFINED)}


def end_of_turn(template: chat.Jinja, added: Mapping[str, int]) -> int | None:
    """The token by which a template ends an answer, None where it does so without one.

    What cannot be rendered has no end here, and is an error where a text is to be written.
    """
    try:
        if "messages" not in chat.variables(template):
            return None
        found = chat.first_token(chat.after_answer(template, template.special_tokens), added)
    except ValueError:
        return None
    return None if found is None else added[found[1]]


def _json(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}
