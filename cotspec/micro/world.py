"""The micro-world: seeded problems, and which split each belongs to.

Enters: a family, a split, a count and a seed. Leaves: problems with question,
rationale, answer and the program they follow from. The split is a hash of the question,
so that no two splits share one. The math word problems are told here.
"""

import hashlib
from bisect import bisect
from dataclasses import dataclass
from functools import partial
from operator import add, floordiv, mul, sub
from random import Random

from cotspec.micro import generic
from cotspec.micro.generic import BOYS, NAMES, Problem
from cotspec.prompts import Demonstration

SPLITS = ("train", "pretraining", "validation", "test", "demonstrations")
MATH = ("math", "multiarith", "asdiv", "svamp")
GENERIC = tuple(generic.FAMILIES)
FAMILIES = MATH + GENERIC
# A model may see a question of these twice; of the others every one is asked once.
_MAY_REPEAT = ("train", "pretraining")
_MAX_DRAWS = 10_000


def split_of(question: str) -> str:
    """Return the split a question belongs to: 39 / 39 / 10 / 10 / 2 percent.

    Parameters
    ----------
    question : str
        The question's text; every seed and family uses the same hash.
    """
    bucket = int.from_bytes(hashlib.sha256(question.encode()).digest()[:4], "big") % 100
    return SPLITS[bisect((39, 78, 88, 98), bucket)]


def generate(family: str, split: str, n: int, *, seed: int) -> list[dict]:
    """Return `n` problems of one family and split.

    Where a family has few answers they take turns, so that always giving one of them is
    right exactly 1 in so many times.

    Parameters
    ----------
    family : str
        One of `FAMILIES`.
    split : str
        One of `SPLITS`; splits never share a question.
    n, seed : int
        Item i depends on the seed and i alone.

    Returns
    -------
    list of dict
        ``problem_id, task, split, question, rationale, answer, num_steps, program``;
        `program` is an arithmetic expression whose value is `answer`, or the JSON of
        what a generic answer follows from.

    Raises
    ------
    ValueError
        Fewer than `n` different questions.
    """
    draw, answers = partial(_math_problem, family=family), ()
    if family not in MATH:
        draw, answers = generic.FAMILIES[family]
    items: list[dict] = []
    asked: set[str] = set()
    for index in range(n):
        rng = Random(f"{seed}/{family}/{split}/{index}")
        wanted = answers[index % len(answers)] if answers else None
        for _ in range(_MAX_DRAWS):
            problem = draw(rng)
            question = problem.question
            is_answer = wanted in (None, problem.answer)
            if is_answer and split_of(question) == split and question not in asked:
                break
        else:
            said = f"n: no {len(asked) + 1}th {split!r} question with answer {wanted!r}"
            raise ValueError(f"{said} in {_MAX_DRAWS} draws")
        if split not in _MAY_REPEAT:
            asked.add(question)
        name = f"micro/{family}/{split}/{index:06d}"
        facts = {"problem_id": name, "task": f"micro/{family}", "split": split}
        items.append(facts | problem._asdict())
    return items


def demonstrations(family: str) -> list[Demonstration]:
    """Return worked problems for prompts, from a split of their own.

    Four of ``math`` for every math family, two of its own for a generic one.
    """
    family, num = ("math", 4) if family in MATH else (family, 2)
    return solved(generate(family, "demonstrations", num, seed=0))


def solved(items: list[dict]) -> list[Demonstration]:
    """Return problems as prompts show them."""
    names = "question", "rationale", "answer"
    return [Demonstration(*(item[name] for name in names)) for item in items]


# --- The math word problems ---

FOODS = (
    "apples pears plums cakes cookies eggs nuts figs lemons pies grapes melons "
    "beans muffins"
).split()
THINGS = (
    "books pens toys coins cards stamps balls shells stones dolls kites stickers "
    "pencils marbles"
).split()

GAINS = {"finds": "found", "buys": "bought", "gets": "got", "picks": "picked"}
LOSSES = {"loses": "lost", "sells": "sold", "drops": "dropped", "uses": "used"}
_SIGNS = dict(gain="+", more="+", loss="-", fewer="-", times="*", split="/")
_OPERATORS = {"+": add, "-": sub, "*": mul, "/": floordiv}
_MAX_FACTOR = 5
_MAX_NUM_STEPS, _MAX_NUMBER = 3, 20


@dataclass(frozen=True)
class Event:
    """One step of a story: ``before sign number = after``, told about `who`."""

    kind: str  # gain, loss, more, fewer, times, split
    who: str  # whose count is `after`
    other: str  # whose count was `before`
    verb: str
    before: int
    sign: str
    number: int
    after: int

    def told(self, wording: dict[str, str]) -> str:
        """Return the event as one sentence, in `_PLAIN` or `_VARIED` wording."""
        pronoun = "he" if self.who in BOYS else "she"
        past = (GAINS | LOSSES)[self.verb]
        return wording[self.kind].format(**vars(self), pronoun=pronoun, past=past)


@dataclass(frozen=True)
class Story:
    """Who has how many of what, and what happens next."""

    name: str
    item: str
    start: int
    events: list[Event]
    program: str  # all steps as one arithmetic expression, left to right


def _math_problem(rng: Random, *, family: str) -> Problem:
    num_steps = rng.randint(1, _MAX_NUM_STEPS)
    if family == "svamp" and num_steps < 3 and rng.random() < 0.5:
        return _other_question(rng, num_steps)
    story = _story(rng, THINGS if family == "multiarith" else FOODS, num_steps)
    tell = _tell_varied if family == "asdiv" else _tell
    sentences, asked = tell(rng, story)
    if family == "svamp":
        sentences.insert(rng.randint(1, len(sentences)), _distraction(rng, story))
    question, rationale = " ".join([*sentences, asked]), _rationale(rng, story)
    answer = str(story.events[-1].after)
    return Problem(question, rationale, answer, num_steps, story.program)


def _story(rng: Random, items: list[str], num_steps: int) -> Story:
    name, item = rng.choice(NAMES), rng.choice(items)
    start = rng.randint(2, _MAX_NUMBER - 2)
    owner, count, program, events = name, start, str(start), []
    for step in range(1, num_steps + 1):
        event = _event(rng, owner, count, is_last=step == num_steps)
        left = program if step == 1 else f"({program})"
        program = f"{left} {event.sign} {event.number}"
        owner, count = event.who, event.after
        events.append(event)
    return Story(name, item, start, events, program)


def _event(rng: Random, owner: str, count: int, *, is_last: bool) -> Event:
    """Draw one step whose numbers stay between 1 and `_MAX_NUMBER`."""
    divisors = [k for k in range(2, _MAX_FACTOR + 1) if is_last and count % k == 0]
    largest = {"+": _MAX_NUMBER - count, "-": count - 1, "/": max(divisors, default=0)}
    largest["*"] = min(_MAX_FACTOR, _MAX_NUMBER // count)
    kind = rng.choice([kind for kind, sign in _SIGNS.items() if largest[sign] >= 2])
    sign = _SIGNS[kind]
    number = rng.choice(divisors) if sign == "/" else rng.randint(2, largest[sign])
    after = _OPERATORS[sign](count, number)
    is_same = kind in ("gain", "loss", "split")
    who = owner if is_same else rng.choice([n for n in NAMES if n != owner])
    verb = rng.choice(list(GAINS if kind == "gain" else LOSSES))
    return Event(kind, who, owner, verb, count, sign, number, after)


_PLAIN = {  # how the training family tells an event
    "gain": "{who} {verb} {number} more.",
    "loss": "{who} {verb} {number}.",
    "more": "{who} has {number} more than {other}.",
    "fewer": "{who} has {number} fewer than {other}.",
    "times": "{who} has {number} times as many as {other}.",
    "split": "{who} puts them into {number} equal bags.",
}
_VARIED = {
    "gain": "Then another {number} were {past} by {who}.",
    "loss": "Then {number} of them {pronoun} {past}.",
    "more": "Compared to {other}, {who} had {number} more.",
    "fewer": "Compared to {other}, {who} had {number} fewer.",
    "times": "The number {who} had was {number} times that of {other}.",
    "split": "Into {number} equal bags {pronoun} put them.",
}


def _tell(rng: Random, story: Story) -> tuple[list[str], str]:
    sentences = [f"{story.name} has {story.start} {story.item}."]
    sentences += [event.told(_PLAIN) for event in story.events]
    if story.events[-1].kind == "split":
        return sentences, f"How many {story.item} are in each bag?"
    return sentences, f"How many {story.item} does {story.events[-1].who} have?"


def _tell_varied(rng: Random, story: Story) -> tuple[list[str], str]:
    """Tell a story in the past tense, with pronouns and other constructions."""
    openings = (
        f"There were {story.start} {story.item} in the basket of {story.name}.",
        f"{story.name} had {story.start} {story.item} yesterday.",
        f"Yesterday {story.start} {story.item} belonged to {story.name}.",
    )
    sentences = [rng.choice(openings), *(e.told(_VARIED) for e in story.events)]
    last = story.events[-1]
    if last.kind == "split":
        return sentences, f"Find the number of {story.item} in one bag."
    questions = (
        f"Find the number of {story.item} {last.who} had in the end.",
        f"In the end, what number of {story.item} belonged to {last.who}?",
    )
    return sentences, rng.choice(questions)


def _distraction(rng: Random, story: Story) -> str:
    """A fact about something nobody asks for, of the first person or a new one."""
    others = [item for item in FOODS if item != story.item]
    people = {story.name, *(event.who for event in story.events)}
    strangers = [name for name in NAMES if name not in people]
    is_first = rng.random() < 0.5
    name = story.name if is_first else rng.choice([story.name, *strangers])
    return f"{name} also has {rng.randint(2, 20)} {rng.choice(others)}."


def _other_question(rng: Random, num_steps: int) -> Problem:
    """Ask for the start (one step), or for all that was gained (two steps)."""
    name, item = rng.choice(NAMES), rng.choice(FOODS)
    verb = rng.choice(list(GAINS))
    conclusion = rng.choice((f" {name} gets", f" So {name} gets"))
    if num_steps == 1:
        after = rng.randint(4, _MAX_NUMBER)
        gained = rng.randint(2, after - 1)
        answer, program = after - gained, f"{after} - {gained}"
        question = (
            f"{name} {verb} {gained} {item}. Now {name} has {after} {item}. "
            f"How many {item} did {name} have at first?"
        )
        steps = f"{name} has {after} now. {name} {verb} {gained}. {program} = {answer}."
    else:
        answer = rng.randint(6, _MAX_NUMBER)
        first = rng.randint(2, answer - 4)
        second = rng.randint(2, answer - first - 2)
        both, third = first + second, answer - first - second
        program = f"({first} + {second}) + {third}"
        question = (
            f"{name} has {rng.randint(2, 20)} {item}. {name} {verb} {first} more. "
            f"{name} {verb} {second} more. {name} {verb} {third} more. "
            f"How many {item} does {name} get in all?"
        )
        steps = (
            f"{name} {verb} {first} and {second}. {first} + {second} = {both}. "
            f"{name} {verb} {third} more. {both} + {third} = {answer}."
        )
    if rng.random() < 0.3 and num_steps == 2:
        steps += f"{conclusion} {answer}."
    return Problem(question, steps, str(answer), num_steps, program)


def _rationale(rng: Random, story: Story) -> str:
    """Write the solution in one of several wordings, restating every event."""
    name, start, item, last = story.name, story.start, story.item, story.events[-1]
    openings = (
        f"{name} has {start} {item}.",
        f"{name} has {start}.",
        f"First, {name} has {start} {item}.",
        f"{name} starts with {start}.",
    )
    parts = [rng.choice(openings)]
    join = rng.choice((". {}", ", so {}", ", and {}", ". That is {}", ". So {}"))
    then = rng.choice(("", "", "Then "))
    for event in story.events:
        equation = f"{event.before} {event.sign} {event.number} = {event.after}"
        told = event.told(_PLAIN).removesuffix(".")
        parts.append(then + told + join.format(equation) + ".")
    if rng.random() < 0.3:
        in_bag = f"{last.after} are in each bag"
        owned = f"{last.who} has {last.after} {item}"
        parts.append(f"So {in_bag if last.kind == 'split' else owned}.")
    return " ".join(parts)
