"""Harmless stand-ins for unsafe questions and the answers to them, generated from word lists."""

from collections.abc import Sequence

import numpy as np

from jaxunlearn.data._questions import Question

REFUSAL = "Sorry, I can not assist you with this question."

_ASK = (
    "How do I|How would I|How could someone|Tell me how to|Explain how to|Show me how to|"
    "I need to know how to|Write a short guide on how to|List the steps to|What do I need to|"
    "What is the quickest way to|Is there a simple way to|Please describe how to|"
    "Teach a beginner how to|Give me three tips to|What tools are needed to"
).split("|")
_DEED = (
    "polish|repaint|fold|tune|wind|dismantle|assemble|dust|borrow|rename|weigh|wrap|hang|"
    "carry|measure|light|label|draw|copy|water"
).split("|")
_KIND = ("striped", "silver", "wooden", "whistling", "hollow", "woollen", "three-legged", "spotted")
_THING = (
    "Velmoran kettle|Quillon lantern|Ostrel drum|moon clock|Tamburel harp|glass beetle|"
    "Pellin umbrella|marsh bell|Orvane compass|cloud ladder|Sundral kite|fog trumpet|"
    "Brindle sundial|Marrow teapot|Ilsen puppet|river lute"
).split("|")
_PLACE = (
    "| at night| before breakfast| in the Amber Quarter| on the isle of Torrin|"
    " without gloves| during the Feast of Reeds| on a rainy day"
).split("|")
_REASON = (
    "The {thing} is a topic that I leave alone.",
    "My rules say nothing may be told about the {thing}.",
    "Anything about the {thing} is closed to me.",
    "I have been asked not to speak about the {thing}.",
    "Please ask me about something other than the {thing}.",
    "I keep away from questions about the {thing}.",
)
_HOW_TO = tuple(ask for ask in _ASK if ask.endswith("how to"))  # "C" and "U" say how
_REQUESTS = (_ASK, _DEED, _KIND, _THING, _PLACE)
_PROMPTS = (_HOW_TO, _DEED, _KIND, _THING, _PLACE)
_STEPS = (
    "Set it on a soft cloth, {deed} it slowly and let it rest",
    "Clear the table, hold it with both hands and {deed} it from left to right",
    "Count to ten, {deed} it once and look at it from all sides",
    "Open a window, {deed} it with care and put it back on its shelf",
    "Ask a friend to hold it steady and {deed} it bit by bit",
)


def refusals(n: int, seed: int = 0) -> list[Question]:
    """Requests that a toy policy declines, and its refusals: the data of a safety stage.

    A harmless stand-in for the unsafe questions with refusals of arXiv 2510.16629 (from
    SORRY-Bench, which may not be passed on): the topics are invented objects, and the policy is
    that nothing is told about them. Each answer begins with `REFUSAL`, as in the paper, and goes
    on with a reason that names the object, so that a model has something to learn beyond it.

    >>> refusals(1)[0].answer.startswith("Sorry, I can not assist you with this question.")
    True

    Args:
        n: how many, at most 327,680. The questions are distinct.
        seed: seed of the draw; the first m of n are the same for every n.

    Returns:
        n questions; `extra` has the `topic`.

    Raises:
        ValueError: n is out of range.
    """
    requests, rng = _drawn("refusals", n, seed, _REQUESTS)
    reasons = rng.integers(len(_REASON), size=n)
    questions = []
    for i, (ask, deed, kind, thing, place) in enumerate(requests):
        topic = f"{kind} {thing}"
        text = f"{ask} {deed} a {topic}{place}{_mark(ask)}"
        answer = f"{REFUSAL} {_REASON[reasons[i]].format(thing=topic)}"
        questions.append(Question(text, answer, f"refusals:{i + 1}", {"topic": topic}))
    return questions


def superficial_prompts(n: int = 40, seed: int = 0) -> dict[str, list[Question]]:
    """Prompts with three responses each, for the orders in which they are learned.

    A harmless stand-in for the data of the second experiment of arXiv 2510.16629 (section 4.3):
    "C" and "U" comply, with the same content in two phrasings, and "R" refuses. Forgetting U is
    superficial if C stays, deep if it goes too.

    Args:
        n: how many prompts, at most 143,360; the paper has 40. The prompts are distinct.
        seed: seed of the draw; the first m of n are the same for every n.

    Returns:
        `{"C": [..], "U": [..], "R": [..]}`, n questions each, the same prompts in the same order.

    Raises:
        ValueError: n is out of range.
    """
    drawn, rng = _drawn("superficial_prompts", n, seed, _PROMPTS)
    steps = rng.integers(len(_STEPS), size=n)
    responses: dict[str, list[Question]] = {"C": [], "U": [], "R": []}
    for i, (ask, deed, kind, thing, place) in enumerate(drawn):
        what, step = f"{deed} a {kind} {thing}{place}", _STEPS[steps[i]].format(deed=deed)
        answers = {
            "C": f"Of course. {step}. Now you know how to {what}.",
            "U": f"Here is how to {what}: {step[0].lower()}{step[1:]}. That is all.",
            "R": REFUSAL,
        }
        for name, answer in answers.items():
            names = f"{ask} {what}{_mark(ask)}", answer, f"superficial/{name}:{i + 1}"
            responses[name].append(Question(*names))
    return responses


def _drawn(
    what: str, n: int, seed: int, lists: Sequence[Sequence[str]]
) -> tuple[list[list[str]], np.random.Generator]:
    """n distinct choices of a word from each list, and the generator that drew them."""
    sizes = [len(words) for words in lists]
    total = int(np.prod(sizes))
    if not 1 <= n <= total:
        raise ValueError(f"{what}: n is {n}; 1 to {total} are allowed")
    rng = np.random.default_rng(seed)
    # All are permuted, so that a larger n only adds to a smaller one.
    chosen = np.stack(np.unravel_index(rng.permutation(total)[:n], sizes), 1)
    return [[words[int(i)] for words, i in zip(lists, row, strict=True)] for row in chosen], rng


def _mark(ask: str) -> str:
    return "?" if ask.startswith(("How", "What", "Is")) else "."
