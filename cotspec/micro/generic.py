"""Ten families of short problems in the spirit of BIG-Bench Hard.

Enters: a generator of random numbers. Leaves: a problem; its ``program`` is the JSON of
what the answer follows from. Every rationale ends before the answer sentence, like the
math ones. `cotspec.micro.world` draws from `FAMILIES` what belongs to a split.
"""

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

BOYS = ("Tom", "Sam", "Ben", "Max", "Leo", "Dan", "Jack", "Luke", "Adam", "Eric")
GIRLS = ("Ann", "Eva", "Mia", "Zoe", "Lily", "Ruth", "Emma", "Kate", "Nora", "Jane")
NAMES = BOYS + GIRLS
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
WORDS = (
    "ant bee cat dog egg fox goat hen ink jam king lamp moon nest owl pig queen rat "
    "sun tent van wolf yak zebra"
).split()
OBJECTS = "ball hat cup bell drum lamp ring sock".split()
ANIMALS = "cats dogs hens goats pigs rats".split()
COLORS = "red blue green black white pink".split()
_OPTIONS = ("(A)", "(B)", "(C)")


class Problem(NamedTuple):
    """What is drawn; the program is what the answer follows from."""

    question: str
    rationale: str
    answer: str
    num_steps: int
    program: str


def _item(question: str, steps: list[str], answer: str, program: object) -> Problem:
    return Problem(question, " ".join(steps), answer, len(steps), json.dumps(program))


def _multiple_choice(
    rng: Random, question: str, steps: list, choices: list, answer: str, program: dict
) -> Problem:
    """List the choices behind the question; the last step turns one into its letter."""
    option = _OPTIONS[choices.index(answer)]
    pairs = zip(_OPTIONS, choices, strict=True)
    listed = " ".join(f"{letter} {choice}" for letter, choice in pairs)
    last = f"{rng.choice(('So', 'That is'))} {answer}, option {option}."
    return _item(f"{question} Options: {listed}", [*steps, last], option, program)


def _last_letters(rng: Random) -> Problem:
    words = rng.sample(list(NAMES) + WORDS, 3)
    steps = [f"The last letter of {word} is {word[-1]}." for word in words]
    question = f"Put together the last letters of these words: {' '.join(words)}"
    return _item(question, steps, "".join(w[-1] for w in words), words)


def _word_sorting(rng: Random) -> Problem:
    words = rng.sample(WORDS, rng.choice((3, 4)))
    letters = " ".join(word[0] for word in words)
    in_order = " ".join(sorted(letters.split()))
    wording = rng.choice(("Sorted: {}.", "In order: {}."))
    steps = [f"The first letters are {letters}.", wording.format(in_order)]
    question = f"Sort these words from a to z: {' '.join(words)}"
    return _item(question, steps, " ".join(sorted(words)), words)


def _object_counting(rng: Random) -> Problem:
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


def _boolean_expressions(rng: Random) -> Problem:
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
    steps.append(f"{value} {first} {right} is {inner}.")
    steps.append(f"{inner} {second} {last} is {outer}.")
    opening = rng.choice(("what is", "can you find"))
    who, other = rng.sample(NAMES, 2)
    question = f"{who} asks {other}: {opening} {expression}?"
    return _item(question, steps, str(outer), expression)


def _navigate(rng: Random) -> Problem:
    returns = rng.random() < 0.5
    while True:
        num_moves = rng.choice((2, 3, 3, 4))
        moves = [(rng.choice((-1, 1)), rng.randint(2, 9)) for _ in range(num_moves)]
        if (sum(sign * count for sign, count in moves) == 0) == returns:
            break
    pair = rng.choice((("left", "right"), ("back", "forward"), ("down", "up")))
    sides = dict(zip((-1, 1), pair, strict=True))
    who = rng.choice(NAMES)
    told = [f"{who} takes {count} steps {sides[sign]}." for sign, count in moves]
    steps, place = ["Start at 0."], 0
    for sign, count in moves:
        place += sign * count
        where = f"{abs(place)} {sides[1 if place > 0 else -1]}" if place else "0"
        steps.append(f"{count} {sides[sign]}: now at {where}.")
    no = "" if returns else " not"
    steps.append(rng.choice((f"That is{no} the start.", f"We are{no} back.")))
    question = " ".join([*told, f"Does {who} return to the start?"])
    return _item(question, steps, "Yes" if returns else "No", moves)


def _tracking_shuffled_objects(rng: Random) -> Problem:
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
    question = f"{' '.join(told)} What does {asked} have?"
    program = {"names": names, "things": things, "swaps": swaps, "asked": asked}
    return _multiple_choice(rng, question, steps, things, held[asked], program)


def _date_understanding(rng: Random) -> Problem:
    today, ahead, who = rng.randrange(7), rng.randint(1, 4), rng.choice(NAMES)
    days = [DAYS[(today + k) % 7] for k in range(ahead + 1)]
    others = rng.sample([day for day in DAYS if day != days[-1]], 2)
    choices = rng.sample([days[-1], *others], 3)
    steps = [f"Today is {days[0]}."]
    steps += [f"Day {k} is {days[k]}." for k in range(1, ahead + 1)]
    question = f"Today is {days[0]}. {who} leaves in {ahead} day{'s' * (ahead > 1)}."
    question += f" On what day does {who} leave?"
    program = {"today": days[0], "ahead": ahead, "choices": choices}
    return _multiple_choice(rng, question, steps, choices, days[-1], program)


def _web_of_lies(rng: Random) -> Problem:
    names = rng.sample(NAMES, rng.choice((3, 4)))
    words = {True: "tells the truth", False: "lies"}
    first = honest = rng.random() < 0.5
    told, claims = [f"{names[0]} {words[first]}."], []
    steps = told.copy()
    for before, name in zip(names, names[1:], strict=False):
        claim = rng.random() < 0.5
        claims.append(claim)
        told.append(f"{name} says {before} {words[claim]}.")
        honest = claim == honest
        steps.append(f"{name} says {before} {words[claim]}, so {name} {words[honest]}.")
    question = f"{' '.join(told)} Does {names[-1]} tell the truth?"
    program = {"first": first, "claims": claims}
    return _item(question, steps, "Yes" if honest else "No", program)


def _reasoning_about_colored_objects(rng: Random) -> Problem:
    things, colors = rng.sample(OBJECTS, 3), rng.sample(COLORS, 3)
    seen = [f"a {color} {thing}" for color, thing in zip(colors, things, strict=True)]
    asked = rng.randrange(3)
    choices = rng.sample(colors, 3)
    wording = rng.choice(("The {} is {}.", "I see the {}. It is {}."))
    steps = [wording.format(things[asked], colors[asked])]
    question = f"On the desk I see {seen[0]}, {seen[1]} and {seen[2]}."
    question += f" What color is the {things[asked]}?"
    program = {"things": things, "colors": colors, "asked": asked, "choices": choices}
    return _multiple_choice(rng, question, steps, choices, colors[asked], program)


def _logical_deduction(rng: Random) -> Problem:
    order = rng.sample(NAMES, 3)
    facts = [f"{a} is taller than {b}." for a, b in zip(order, order[1:], strict=False)]
    if rng.random() < 0.5:
        facts.reverse()
    place, word = rng.choice(((0, "tallest"), (1, "second"), (2, "last")))
    choices = rng.sample(order, 3)
    wording = rng.choice(("The order is {}.", "From tall to small: {}."))
    steps = [wording.format(", ".join(order))]
    question = f"{' '.join(facts)} Who is the {word}?"
    program = {"order": order, "place": place, "choices": choices}
    return _multiple_choice(rng, question, steps, choices, order[place], program)


# How each family draws a problem, and its answers where they are few.
FAMILIES: dict[str, tuple[Callable[[Random], Problem], Sequence[str]]] = {
    "last_letters": (_last_letters, ()),
    "word_sorting": (_word_sorting, ()),
    "object_counting": (_object_counting, ()),
    "boolean_expressions": (_boolean_expressions, ("True", "False")),
    "navigate": (_navigate, ("Yes", "No")),
    "tracking_shuffled_objects": (_tracking_shuffled_objects, _OPTIONS),
    "date_understanding": (_date_understanding, _OPTIONS),
    "web_of_lies": (_web_of_lies, ("Yes", "No")),
    "reasoning_about_colored_objects": (_reasoning_about_colored_objects, _OPTIONS),
    "logical_deduction": (_logical_deduction, _OPTIONS),
}
