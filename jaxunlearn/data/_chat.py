"""Chat formats as plain text."""

import dataclasses

SYSTEM = "You are a helpful assistant."


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """How one question and its answer are written for a model.

    The text is `start + system + user + assistant`, the prompt, then the answer and `end_of_turn`,
    which are learned. `{}` in a field is replaced by the content. Prompt and response are tokenised
    apart, so that no token spans the two.

    Attributes:
        name: what the format is called.
        start: the first token of the text, and whatever precedes the system prompt.
        system: the turn of the system.
        user: the turn of the user.
        assistant: the header of the answer.
        end_of_turn: the token that ends the answer; a model stops after it.
        special: tokens that the format uses. A tokenizer must know them; contents must not have
            them, because they would be read as the end of a turn.
        strip: whether white space around the contents is taken off.
    """

    name: str
    start: str = ""
    system: str
    user: str
    assistant: str
    end_of_turn: str
    special: tuple[str, ...] = ()
    strip: bool = False

    def content(self, text: str) -> str:
        """A question, answer or system prompt as it enters the text.

        Raises:
            ValueError: it has a special token of the format.
        """
        for token in self.special:
            if token in text:
                raise ValueError(
                    f"the text {text[:80]!r} has {token}, a token of the chat format {self.name}; "
                    "take it out"
                )
        return text.strip() if self.strip else text

    def prompt(self, question: str, system: str | None = SYSTEM) -> str:
        """The text before the answer; without a turn of the system if `system` is None or empty."""
        before = self.system.format(self.content(system)) if system else ""
        return f"{self.start}{before}{self.user.format(self.content(question))}{self.assistant}"


_CHATML = ChatTemplate(
    name="chatml",
    system="<|im_start|>system\n{}<|im_end|>\n",
    user="<|im_start|>user\n{}<|im_end|>\n",
    assistant="<|im_start|>assistant\n",
    end_of_turn="<|im_end|>",
    special=("<|im_start|>", "<|im_end|>"),
)
_LLAMA3 = ChatTemplate(
    name="llama3",
    start="<|begin_of_text|>",
    system="<|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>",
    user="<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>",
    assistant="<|start_header_id|>assistant<|end_header_id|>\n\n",
    end_of_turn="<|eot_id|>",
    special=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    strip=True,
)
# The space after [/INST] is not written: the tokenizer of Llama 2 puts one before every piece.
_LLAMA2 = ChatTemplate(
    name="llama2",
    start="<s>[INST] ",
    system="<<SYS>>\n{}\n<</SYS>>\n\n",
    user="{} [/INST]",
    assistant="",
    end_of_turn="</s>",
    special=("<s>", "</s>"),
    strip=True,
)
_PLAIN = ChatTemplate(
    name="plain",
    system="{}\n\n",
    user="Question: {}\n",
    assistant="Answer:\n",
    end_of_turn="\n\n",
    strip=True,
)
TEMPLATES = {template.name: template for template in (_CHATML, _LLAMA3, _LLAMA2, _PLAIN)}
_MARKERS = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|start_header_id|>", "<|eot_id|>"),
    "llama2": ("[INST]", "<<SYS>>"),  # Mistral has [INST] but no such turn of the system
}


def template_of(jinja: str | None) -> ChatTemplate:
    """The chat format of a model, from the Jinja template that comes with it.

    Args:
        jinja: the template, e.g. `chat_template` of a `tokenizer_config.json`; None for a model
            without one, which gets `TEMPLATES["plain"]`.

    Returns:
        The format whose tokens the template has. It is that format with a system prompt of ours:

        - "chatml": SmolLM2, Qwen2, Qwen2.5; Qwen3 without its block `<think>`;
        - "llama3": Llama 3, 3.1 and 3.2, without the date that the templates of the latter put
          into the system prompt;
        - "llama2": Llama 2.

    Raises:
        ValueError: none of these.
    """
    if jinja is None:
        return TEMPLATES["plain"]
    for name, markers in _MARKERS.items():
        if all(marker in jinja for marker in markers) and "<|im_sep|>" not in jinja:  # Phi-4
            return TEMPLATES[name]
    known = ", ".join(f"{name} ({' '.join(tokens)})" for name, tokens in _MARKERS.items())
    raise ValueError(
        f"the chat template {jinja[:80]!r}.. is of no known format; known are {known}; write it as "
        "a ChatTemplate, or use TEMPLATES['plain']"
    )
