"""Text for language models: questions and answers, chat formats, token arrays.

From a source (`tofu`, `gsm8k`, `jsonl`, `refusals`, `superficial_prompts`) come `Question`s; the
model's own template (`JinjaTemplate`) or a `ChatTemplate` writes them as a model wants them;
`encode` makes `Sequences`, arrays that know which tokens are the response:

    questions = text.tofu("forget10")
    template = text.template_of(chat_template_of_the_model)
    sequences = text.encode(tokenizer, questions, template=template, max_tokens=512)

`encode_responses` does so for several responses to each question, `prompts` for generation, and
`pack`, `tree` and `buckets` save work. The tokenizer is a `tokenizers.Tokenizer`; nothing here
loads one, and nothing is downloaded.
"""

from jaxunlearn.data._chat import SYSTEM, TEMPLATES, ChatTemplate, JinjaTemplate, template_of
from jaxunlearn.data._encoder import Encoder
from jaxunlearn.data._packing import Bucket, Packed, PromptTree, buckets, pack, tree
from jaxunlearn.data._questions import Question, gsm8k, jsonl, tofu
from jaxunlearn.data._refusals import REFUSAL, refusals, superficial_prompts
from jaxunlearn.data._sequences import Sequences, encode, encode_responses, prompts

__all__ = [
    "REFUSAL",
    "SYSTEM",
    "TEMPLATES",
    "Bucket",
    "ChatTemplate",
    "Encoder",
    "JinjaTemplate",
    "Packed",
    "Question",
    "Sequences",
    "PromptTree",
    "buckets",
    "encode",
    "encode_responses",
    "gsm8k",
    "jsonl",
    "pack",
    "prompts",
    "refusals",
    "superficial_prompts",
    "template_of",
    "tofu",
    "tree",
]
