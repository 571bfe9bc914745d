"""Ten families of short problems in the spirit of BIG-Bench Hard.

Enters: a family, a split, a count and a seed. Leaves: problems with the same columns
as `world.generate`; ``program`` is the JSON of what the answer follows from. Every
rationale ends before the answer sentence, like the math ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random

from cotspec.micro import world
from cotspec.micro.world import NAMES

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
WORDS = (
    "ant bee cat dog egg fox goat hen ink jam king lamp moon nest owl pig queen rat "
    "sun tent van wolf yak zebra"
).split()
OBJECTS = "ball hat cup bell drum lamp ring sock".split()
ANIMALS = "cats dogs hens goats pigs rats".split()
COLORS = "red blue green black white pink".split()


def generate(family: str, split: str, n: int, *, seed: int) -> list[dict]:
    """Return `n` problems of one generic family.

    Parameters
    ----------
    family : str
        One of `FAMILIES`.
    split : str
        One of `world.SPLITS`; splits never share a question.
    n, seed : int
        Item i depends on the seed and i alone.

    Returns
    -------
    list of dict
        ``problem_id, task, split, question, rationale, answer, num_steps, program``.

    Raises
    ------
    ValueError
        Unknown family or split.
    """
    if family not in _DRAWS:
        raise ValueError(f"family: {family!r}. Allowed: {', '.join(FAMILIES)}")
    return world.draw_items(
        _DRAWS[family], family, split, n, seed=seed, answers=_ANSWERS.get(family, ())
    )


def demonstrations(family: str, n: int = 2) -> list[dict]:
    """Return fixed worked problems for prompts, from a split of their own."""
    return generate(family, "demonstrations", n, seed=0)


def _item(
    question: str, steps: list[str], answer: str, program: dict | list | str
) -> dict:
    return {
        "question": question,
        "rationale": " ".join(steps),
        "answer": answer,
        "num_steps": len(steps),
        "program": json.dumps(program),
    }


def _options(choices: list[str]) -> str:
    letters = (f"({letter}) {c}" for letter, c in zip("ABC", choices, strict=True))
    return "Options: " + " ".join(letters)


def _option(choices: list[str], answer: str) -> str:
    return f"({'ABC'[choices.index(answer)]})"


def _so_option(rng: Random, choices: list[str], answer: str) -> str:
    opening = rng.choice(("So", "That is"))
    return f"{opening} {answer}, option {_option(choices, answer)}."


def _last_letters(rng: Random) -> dict:
    words = rng.sample(list(NAMES) + WORDS, 3)
    steps = [f"The last letter of {word} is {word[-1]}." for word in words]
    question = f"Put together the last letters of these words: {' '.join(words)}"
    return _item(question, steps, "".join(w[-1] for w in words), words)


def _word_sorting(rng: Random) -> dict:
    initials = rng.sample(WORDS, rng.choice((3, 4)))
    ordered = sorted(initials)
    letters = " ".join(word[0] for word in initials)
    in_order = " ".join(word[0] for word in ordered)
    wording = rng.choice(("Sorted: {}.", "In order: {}."))
    steps = [f"The first letters are {letters}.", wording.format(in_order)]
    question = f"Sort these words from a to z: {' '.join(initials)}"
    return _item(question, steps, " ".join(ordered), initials)


def _object_counting(rng: Random) -> dict:
    kinds = rng.sample(ANIMALS, rng.choice((2, 3)))
    counts = [rng.randint(2, 9) for _ in kinds]
    listed = [f"{count} {kind}" for count, kind in zip(counts, kinds, strict=True)]
    wording = rng.choice(("Start with {}.", "First there are {}."))
    steps, total = [wording.format(listed[0])], counts[0]
    for count, text in zip(counts[1:], listed[1:], strict=True):
        steps.append(f"Add {text}: {total} + {count} = {total + count}.")
        total += count
    who = rng.choice(NAMES)
    question = f"{who} has {', '.join(listed[:-1])} and {listed[-1]}."
    question += f" How many animals does {who} have?"
    return _item(question, steps, str(total), counts)


def _boolean_expressions(rng: Random) -> dict:
    wanted = rng.random() < 0.5
    while True:
        left, right, last = (rng.random() < 0.5 for _ in range(3))
        negated = rng.random() < 0.5
        first, second = rng.choice(("and", "or")), rng.choice(("and", "or"))
        value = not left if negated else left
        inner = (value and right) if first == "and" else (value or right)
        outer = (inner and last) if second == "and" else (inner or last)
        if outer == wanted:
            break
    expression = f"( {'not ' * negated}{left} {first} {right} ) {second} {last}"
    steps = [f"not {left} is {value}."] if negated else []
    steps += [f"{value} {first} {right} is {inner}."]
    steps += [f"{inner} {second} {last} is {outer}."]
    opening = rng.choice(("what is", "can you find"))
    who, other = rng.sample(NAMES, 2)
    question = f"{who} asks {other}: {opening} {expression}?"
    return _item(question, steps, str(outer), expression)


def _navigate(rng: Random) -> dict:
    returns = rng.random() < 0.5
    while True:
        num_moves = rng.choice((2, 3, 3, 4))
        moves = [(rng.choice((-1, 1)), rng.randint(2, 9)) for _ in range(num_moves)]
        if (sum(sign * count for sign, count in moves) == 0) == returns:
            break
    pair = rng.choice((("left", "right"), ("back", "forward"), ("down", "up")))
    sides = dict(zip((-1, 1), pair, strict=True))
    who = rng.choice(NAMES)
    told, steps, place = [], ["Start at 0."], 0
    for sign, count in moves:
        told.append(f"{who} takes {count} steps {sides[sign]}.")
        place += sign * count
        where = f"{abs(place)} {sides[1 if place > 0 else -1]}" if place else "0"
        steps.append(f"{count} {sides[sign]}: now at {where}.")
    endings = ("That is the start.", "We are back.")
    if not returns:
        endings = ("That is not the start.", "We are not back.")
    steps.append(rng.choice(endings))
    question = " ".join([*told, f"Does {who} return to the start?"])
    return _item(question, steps, "Yes" if returns else "No", moves)


def _tracking_shuffled_objects(rng: Random) -> dict:
    names, things = rng.sample(NAMES, 3), rng.sample(OBJECTS, 3)
    held = dict(zip(names, things, strict=True))
    told = [", ".join(f"{name} has a {thing}" for name, thing in held.items()) + "."]
    steps, swaps = [], []
    for _ in range(2):
        one, two = rng.sample(names, 2)
        swaps.append([one, two])
        held[one], held[two] = held[two], held[one]
        told.append(f"{one} and {two} swap.")
        now = ", ".join(f"{name} {thing}" for name, thing in held.items())
        steps.append(f"{one} and {two} swap: {now}.")
    asked = rng.choice(names)
    steps.append(_so_option(rng, things, held[asked]))
    question = f"{' '.join(told)} What does {asked} have? {_options(things)}"
    program = {"names": names, "things": things, "swaps": swaps, "asked": asked}
    return _item(question, steps, _option(things, held[asked]), program)


def _date_understanding(rng: Random) -> dict:
    today, ahead, who = rng.randrange(7), rng.randint(1, 4), rng.choice(NAMES)
    days = [DAYS[(today + k) % 7] for k in range(ahead + 1)]
    others = rng.sample([day for day in DAYS if day != days[-1]], 2)
    choices = rng.sample([days[-1], *others], 3)
    steps = [f"Day {k} is {day}." for k, day in enumerate(days) if k]
    steps = [f"Today is {days[0]}.", *steps, _so_option(rng, choices, days[-1])]
    question = (
        f"Today is {days[0]}. {who} leaves in {ahead} day{'s' * (ahead > 1)}. "
        f"On what day does {who} leave? {_options(choices)}"
    )
    program = {"today": days[0], "ahead": ahead, "choices": choices}
    return _item(question, steps, _option(choices, days[-1]), program)


def _web_of_lies(rng: Random) -> dict:
    names = rng.sample(NAMES, rng.choice((3, 4)))
    words = {True: "tells the truth", False: "lies"}
    honest = rng.random() < 0.5
    told, steps = [f"{names[0]} {words[honest]}."], []
    steps.append(told[0])
    claims = []
    for before, name in zip(names, names[1:], strict=False):
        claim = rng.random() < 0.5
        claims.append(claim)
        told.append(f"{name} says {before} {words[claim]}.")
        truth = claim == honest
        steps.append(f"{name} says {before} {words[claim]}, so {name} {words[truth]}.")
        honest = truth
    question = f"{' '.join(told)} Does {names[-1]} tell the truth?"
    program = {"first": told[0] == f"{names[0]} {words[True]}.", "claims": claims}
    return _item(question, steps, "Yes" if honest else "No", program)


def _reasoning_about_colored_objects(rng: Random) -> dict:
    things, colors = rng.sample(OBJECTS, 3), rng.sample(COLORS, 3)
    seen = [f"a {color} {thing}" for color, thing in zip(colors, things, strict=True)]
    asked = rng.randrange(3)
    choices = rng.sample(colors, 3)
    wording = rng.choice(("The {} is {}.", "I see the {}. It is {}."))
    steps = [wording.format(things[asked], colors[asked])]
    steps.append(_so_option(rng, choices, colors[asked]))
    question = (
        f"On the desk I see {seen[0]}, {seen[1]} and {seen[2]}. "
        f"What color is the {things[asked]}? {_options(choices)}"
    )
    program = {"things": things, "colors": colors, "asked": asked, "choices": choices}
    return _item(question, steps, _option(choices, colors[asked]), program)


def _logical_deduction(rng: Random) -> dict:
    order = rng.sample(NAMES, 3)
    facts = [f"{a} is taller than {b}." for a, b in zip(order, order[1:], strict=False)]
    if rng.random() < 0.5:
        facts.reverse()
    place, word = rng.choice(((0, "tallest"), (1, "second"), (2, "last")))
    choices = rng.sample(order, 3)
    wording = rng.choice(("The order is {}.", "From tall to small: {}."))
    steps = [wording.format(", ".join(order)), _so_option(rng, choices, order[place])]
    question = f"{' '.join(facts)} Who is the {word}? {_options(choices)}"
    program = {"order": order, "place": place, "choices": choices}
    return _item(question, steps, _option(choices, order[place]), program)


_DRAWS: dict[str, Callable[[Random], dict]] = {
    "last_letters": _last_letters,
    "word_sorting": _word_sorting,
    "object_counting": _object_counting,
    "boolean_expressions": _boolean_expressions,
    "navigate": _navigate,
    "tracking_shuffled_objects": _tracking_shuffled_objects,
    "date_understanding": _date_understanding,
    "web_of_lies": _web_of_lies,
    "reasoning_about_colored_objects": _reasoning_about_colored_objects,
    "logical_deduction": _logical_deduction,
}
FAMILIES = tuple(_DRAWS)
_OPTIONS = ("(A)", "(B)", "(C)")
# Families whose answers are few.
_ANSWERS = {
    "boolean_expressions": ("True", "False"),
    "navigate": ("Yes", "No"),
    "tracking_shuffled_objects": _OPTIONS,
    "date_understanding": _OPTIONS,
    "web_of_lies": ("Yes", "No"),
    "reasoning_about_colored_objects": _OPTIONS,
    "logical_deduction": _OPTIONS,
}
