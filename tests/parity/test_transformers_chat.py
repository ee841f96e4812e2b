"""Chat templates against `apply_chat_template` of transformers: the same text, the same tokens."""

import warnings

import numpy as np
import pytest

from jaxunlearn.core import chat
from jaxunlearn.data import text
from tests import chat_templates as known

with warnings.catch_warnings():  # of the packages that transformers imports
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module", params=["bytes", "text", "pieces"])
def both(request):
    ours = known.tokenizer(spaces=request.param)
    return ours, transformers.PreTrainedTokenizerFast(tokenizer_object=ours, **known.SPECIAL)


NAMES = (*known.TEMPLATES, "thinks")
WITHOUT_SYSTEM = ("no system", "other roles", "thinks")  # templates without a turn of the system


@pytest.mark.parametrize(
    ("name", "system"),
    [(name, None) for name in NAMES]
    + [(name, "Be brief.") for name in NAMES if not name.endswith(WITHOUT_SYSTEM)],
)
def test_texts_are_those_of_transformers(both, name, system):
    ours, theirs = both
    template = (known.TEMPLATES | {"thinks": known.THINKS})[name]
    question = text.Question("  What is\n\nit?", "It is {that}.\n- one <b>", "q:1")
    options = {"template": text.template_of(chat.Jinja(template, known.SPECIAL)), "system": system}
    rows = text.encode(ours, [question], max_tokens=300, **options)
    prompts, mask = text.prompts(ours, [question], max_tokens=300, **options)
    turns = [{"role": "system", "content": system}] if system else []
    turns.append({"role": "user", "content": question.question})
    apply = lambda **more: theirs.apply_chat_template(  # noqa: E731
        turns, chat_template=template, return_dict=False, **more
    )
    np.testing.assert_array_equal(prompts[0, mask[0]], apply(add_generation_prompt=True))
    turns.append({"role": "assistant", "content": question.answer})
    whole, n = apply(), int(rows.where[0].max()) + 2
    assert rows.tokens[0, :n].tolist() == whole[:n]
    left = ours.decode(whole[n:], skip_special_tokens=False).replace("▁", " ")
    assert left.strip() in ("", "</s>")  # what stands after the end of the turn
