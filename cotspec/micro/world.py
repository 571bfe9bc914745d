"""The micro-world's math: seeded word problems, and which split each belongs to.

Enters: a family, a split, a count and a seed. Leaves: problems with question,
rationale, answer and the program they follow from. The split is a hash of the question,
so that no two splits share one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

SPLITS = ("train", "pretraining", "validation", "test", "demonstrations")
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
    ends = zip((39, 78, 88, 98, 100), SPLITS, strict=True)
    return next(split for end, split in ends if bucket < end)


def draw_items(
    draw: Callable[[Random], dict],
    family: str,
    split: str,
    n: int,
    *,
    seed: int,
    answers: Sequence[str] = (),
) -> list[dict]:
    """Return `n` items of one family and split; item i is the same for every `n`.

    Parameters
    ----------
    draw : callable
        ``draw(rng) -> dict`` with at least ``question``.
    family, split : str
        `split` is one of `SPLITS`.
    n, seed : int
    answers : sequence of str
        Where a family has few answers, these: they take turns, so that always giving
        one of them is right exactly 1 in ``len(answers)`` times.

    Raises
    ------
    ValueError
        Unknown split, `n` below zero, or fewer than `n` different questions.
    """
    if split not in SPLITS:
        raise ValueError(f"split: {split!r}. Allowed: {', '.join(SPLITS)}")
    if n < 0:
        raise ValueError(f"n: {n!r} must be >= 0")
    items: list[dict] = []
    asked: set[str] = set()
    for index in range(n):
        rng = Random(f"{seed}/{family}/{split}/{index}")
        wanted = answers[index % len(answers)] if answers else None
        item = _draw_one(draw, split, wanted, asked, rng)
        if split not in _MAY_REPEAT:
            asked.add(item["question"])
        name = f"micro/{family}/{split}/{index:06d}"
        facts = {"problem_id": name, "task": f"micro/{family}", "split": split}
        items.append(facts | item)
    return items


def _draw_one(
    draw: Callable[[Random], dict],
    split: str,
    wanted: str | None,
    asked: set[str],
    rng: Random,
) -> dict:
    for _ in range(_MAX_DRAWS):
        item = draw(rng)
        question = item["question"]
        is_answer = wanted is None or item["answer"] == wanted
        if is_answer and split_of(question) == split and question not in asked:
            return item
    raise ValueError(
        f"n: no {len(asked) + 1}th {split!r} question with answer {wanted!r} in "
        f"{_MAX_DRAWS} draws"
    )


FAMILIES = ("math", "multiarith", "asdiv", "svamp")

BOYS = ("Tom", "Sam", "Ben", "Max", "Leo", "Dan", "Jack", "Luke", "Adam", "Eric")
GIRLS = ("Ann", "Eva", "Mia", "Zoe", "Lily", "Ruth", "Emma", "Kate", "Nora", "Jane")
NAMES = BOYS + GIRLS
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
_MAX_MULTIPLIER = 5
_MAX_NUM_STEPS, _MAX_NUMBER = 3, 20


@dataclass(frozen=True)
class Event:
    """One step of a story: ``before operator number = after``, told about `who`."""

    kind: str  # gain, loss, more, fewer, times, split
    who: str  # whose count is `after`
    other: str  # whose count was `before`
    verb: str
    before: int
    number: int
    after: int

    @property
    def operator(self) -> str:
        """The arithmetic sign of the step."""
        return {"gain": "+", "more": "+", "times": "*", "split": "/"}.get(
            self.kind, "-"
        )

    @property
    def equation(self) -> str:
        """The step as text, for instance ``13 - 12 = 1``."""
        return f"{self.before} {self.operator} {self.number} = {self.after}"


@dataclass(frozen=True)
class Story:
    """Who has how many of what, and what happens next."""

    name: str
    item: str
    start: int
    events: tuple[Event, ...]

    @property
    def owner(self) -> str:
        """Whose count the last step gives."""
        return self.events[-1].who

    @property
    def program(self) -> str:
        """The story as one arithmetic expression, left to right."""
        expression = str(self.start)
        for event in self.events:
            left = f"({expression})" if " " in expression else expression
            expression = f"{left} {event.operator} {event.number}"
        return expression


def generate(family: str, split: str, n: int, *, seed: int) -> list[dict]:
    """Return `n` math word problems.

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
        `program` is the arithmetic expression whose value is `answer`.

    Raises
    ------
    ValueError
        Unknown family or split.
    """
    if family not in FAMILIES:
        raise ValueError(f"family: {family!r}. Allowed: {', '.join(FAMILIES)}")
    return draw_items(partial(_problem, family=family), family, split, n, seed=seed)


def demonstrations(family: str = "math", n: int = 4) -> list[dict]:
    """Return fixed worked problems for prompts, from a split of their own."""
    return generate(family, "demonstrations", n, seed=0)


def _problem(rng: Random, *, family: str) -> dict:
    num_steps = rng.randint(1, _MAX_NUM_STEPS)
    items = THINGS if family == "multiarith" else FOODS
    if family == "svamp" and num_steps < 3 and rng.random() < 0.5:
        return _other_question(rng, num_steps)
    story = _story(rng, items, num_steps)
    tell = _tell_varied if family == "asdiv" else _tell
    sentences, question = tell(rng, story)
    if family == "svamp":
        sentences.insert(rng.randint(1, len(sentences)), _distraction(rng, story))
    return {
        "question": " ".join([*sentences, question]),
        "rationale": _rationale(rng, story),
        "answer": str(story.events[-1].after),
        "num_steps": num_steps,
        "program": story.program,
    }


def _story(rng: Random, items: list[str], num_steps: int) -> Story:
    name, item = rng.choice(NAMES), rng.choice(items)
    start = count = rng.randint(2, _MAX_NUMBER - 2)
    owner, events = name, []
    for step in range(num_steps):
        event = _event(rng, owner, count, is_last=step == num_steps - 1)
        events.append(event)
        owner, count = event.who, event.after
    return Story(name, item, start, tuple(events))


def _event(rng: Random, owner: str, count: int, *, is_last: bool) -> Event:
    """Draw one step whose numbers stay between 1 and `_MAX_NUMBER`."""
    kinds = []
    if count <= _MAX_NUMBER - 2:
        kinds += ["gain", "more"]
    if count >= 3:
        kinds += ["loss", "fewer"]
    if count * 2 <= _MAX_NUMBER:
        kinds += ["times"]
    divisors = [k for k in range(2, _MAX_MULTIPLIER + 1) if count % k == 0]
    if is_last and divisors:
        kinds += ["split"]
    kind = rng.choice(kinds)
    number = {
        "gain": lambda: rng.randint(2, _MAX_NUMBER - count),
        "more": lambda: rng.randint(2, _MAX_NUMBER - count),
        "loss": lambda: rng.randint(2, count - 1),
        "fewer": lambda: rng.randint(2, count - 1),
        "times": lambda: rng.randint(2, min(_MAX_MULTIPLIER, _MAX_NUMBER // count)),
        "split": lambda: rng.choice(divisors),
    }[kind]()
    after = {
        "gain": count + number,
        "more": count + number,
        "loss": count - number,
        "fewer": count - number,
        "times": count * number,
        "split": count // number,
    }[kind]
    verbs = GAINS if kind == "gain" else LOSSES
    is_same = kind in ("gain", "loss", "split")
    who = owner if is_same else rng.choice([n for n in NAMES if n != owner])
    return Event(kind, who, owner, rng.choice(list(verbs)), count, number, after)


def _sentence(event: Event, item: str) -> str:
    """Tell one event the way the training family does."""
    return {
        "gain": f"{event.who} {event.verb} {event.number} more.",
        "loss": f"{event.who} {event.verb} {event.number}.",
        "more": f"{event.who} has {event.number} more than {event.other}.",
        "fewer": f"{event.who} has {event.number} fewer than {event.other}.",
        "times": f"{event.who} has {event.number} times as many as {event.other}.",
        "split": f"{event.who} puts them into {event.number} equal bags.",
    }[event.kind]


def _tell(rng: Random, story: Story) -> tuple[list[str], str]:
    sentences = [f"{story.name} has {story.start} {story.item}."]
    sentences += [_sentence(event, story.item) for event in story.events]
    if story.events[-1].kind == "split":
        return sentences, f"How many {story.item} are in each bag?"
    return sentences, f"How many {story.item} does {story.owner} have?"


def _tell_varied(rng: Random, story: Story) -> tuple[list[str], str]:
    """Tell a story in the past tense, with pronouns and other constructions."""
    opening = rng.choice(
        (
            f"There were {story.start} {story.item} in the basket of {story.name}.",
            f"{story.name} had {story.start} {story.item} yesterday.",
            f"Yesterday {story.start} {story.item} belonged to {story.name}.",
        )
    )
    sentences = [opening, *(_varied_sentence(rng, e) for e in story.events)]
    if story.events[-1].kind == "split":
        return sentences, f"Find the number of {story.item} in one bag."
    return sentences, rng.choice(
        (
            f"Find the number of {story.item} {story.owner} had in the end.",
            f"In the end, what number of {story.item} belonged to {story.owner}?",
        )
    )


def _varied_sentence(rng: Random, event: Event) -> str:
    pronoun = "he" if event.who in BOYS else "she"
    number, who, other = event.number, event.who, event.other
    past = (GAINS | LOSSES)[event.verb]
    return {
        "gain": f"Then another {number} were {past} by {who}.",
        "loss": f"Then {number} of them {pronoun} {past}.",
        "more": f"Compared to {other}, {who} had {number} more.",
        "fewer": f"Compared to {other}, {who} had {number} fewer.",
        "times": f"The number {who} had was {number} times that of {other}.",
        "split": f"Into {number} equal bags {pronoun} put them.",
    }[event.kind]


def _distraction(rng: Random, story: Story) -> str:
    """A fact about something nobody asks for."""
    others = [item for item in FOODS if item != story.item]
    names = [story.name, *(n for n in NAMES if n not in _people(story))]
    name = names[0] if rng.random() < 0.5 else rng.choice(names)
    return f"{name} also has {rng.randint(2, 20)} {rng.choice(others)}."


def _people(story: Story) -> set[str]:
    return {story.name, *(event.who for event in story.events)}


def _other_question(rng: Random, num_steps: int) -> dict:
    """Ask for the start (one step), or for all that was gained (two steps)."""
    name, item = rng.choice(NAMES), rng.choice(FOODS)
    verb = rng.choice(list(GAINS))
    has = rng.choice((f"{name} has", f"So {name} has"))
    if num_steps == 1:
        after = rng.randint(4, _MAX_NUMBER)
        gained = rng.randint(2, after - 1)
        answer = after - gained
        question = (
            f"{name} {verb} {gained} {item}. Now {name} has {after} {item}. "
            f"How many {item} did {name} have at first?"
        )
        steps = f"{name} has {after} now. {name} {verb} {gained}. "
        steps += f"{after} - {gained} = {answer}."
        program = f"{after} - {gained}"
    else:
        total = rng.randint(6, _MAX_NUMBER)
        first = rng.randint(2, total - 4)
        second = rng.randint(2, total - first - 2)
        third = total - first - second
        question = (
            f"{name} has {rng.randint(2, 20)} {item}. {name} {verb} {first} more. "
            f"{name} {verb} {second} more. {name} {verb} {third} more. "
            f"How many {item} does {name} get in all?"
        )
        steps = (
            f"{name} {verb} {first} and {second}. "
            f"{first} + {second} = {first + second}. {name} {verb} {third} more. "
            f"{first + second} + {third} = {total}."
        )
        answer, program = total, f"({first} + {second}) + {third}"
    if rng.random() < 0.3:
        steps += f" {has.replace(' has', ' gets')} {answer}." if num_steps == 2 else ""
    return {
        "question": question,
        "rationale": steps,
        "answer": str(answer),
        "num_steps": num_steps,
        "program": program,
    }


def _rationale(rng: Random, story: Story) -> str:
    """Write the solution in one of several wordings, restating every event."""
    name, start, item = story.name, story.start, story.item
    parts = [
        rng.choice(
            (
                f"{name} has {start} {item}.",
                f"{name} has {start}.",
                f"First, {name} has {start} {item}.",
                f"{name} starts with {start}.",
            )
        )
    ]
    join = rng.choice((". {}", ", so {}", ", and {}", ". That is {}", ". So {}"))
    then = rng.choice(("", "", "Then "))
    for event in story.events:
        sentence = _sentence(event, item).removesuffix(".")
        parts.append(then + sentence + join.format(event.equation) + ".")
    if rng.random() < 0.3:
        parts.append(_conclusion(story))
    return " ".join(parts)


def _conclusion(story: Story) -> str:
    answer = story.events[-1].after
    if story.events[-1].kind == "split":
        return f"So {answer} are in each bag."
    return f"So {story.owner} has {answer} {story.item}."
