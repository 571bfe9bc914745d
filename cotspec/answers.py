"""Extract, normalise and compare final answers.

Enters: the text a model wrote and the gold answer. Leaves: a `Score`, of exact rational
numbers or by one typed parser per BigBench-Hard task. The teacher filter and the
evaluation use the same functions. Two further scores, `reference_score` and
`lm_eval_flexible_score`, repeat what others compute, faults and all, so that numbers
can be put side by side.
"""

import itertools
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

from cotspec.profiles import BBH_TASKS, GENERIC_PROMPT_MODES

TIERS = ("answer_is", "hashes", "last_number", "none")

# A next question ends the answer. T5 cannot write newlines: there the block begins
# after the end of a sentence, so "Q:" inside a chain does not cut it.
_NEXT_QUESTION = re.compile(r"(?:\n[ \t]*|(?<=[.!?])[ \t]+)Q:")
# Other openings of a next task: some chains ask themselves "Question: …" on the way, so
# these end a text only once it has answered.
_NEXT_TASK = re.compile(
    r"(?i)(?:\n[ \t]*|(?<=[.!?])[ \t]+)[#* ]*"
    r"(?:q|(?:next |new )?(?:question|problem|task)|exercise|example|instruction|input"
    r"|human|user|system|assistant)\s*#?\d*\s*[:.\n]"
)
_CONTROL_TOKEN = re.compile(
    r"</?s>|<\|[^<>|\n]*\|>|<｜[^<>｜\n]*｜>|\[/?INST\]"
    r"|<(?:eos|bos|pad|unk|start_of_turn|end_of_turn)>"
)
# Between "answer" and "is": a remark in brackets, or what it is the answer to.
_ANSWER_IS = re.compile(
    r"(?i)answer(?:\s*\([^()\n]*\)|\s+(?:to|for|of)\b[^.:;,\n]{1,80}?)?"
    r"\s+is(?:n['’]t)?\b:?"
)
_SPACES = "\u00a0\u2006\u2007\u2008\u2009\u200a\u202f"
_GROUPED = re.compile(rf"(?<![\d.,])\d{{1,3}}(?:[{_SPACES}'’_]\d{{3}})+(?![\d])")
_DASHES = re.compile("[\u2010-\u2015\u2212]")
_CURRENCY = "$¢-¥\u20a0-\u20cf"


@dataclass(frozen=True)
class Score:
    """One scored completion.

    Attributes
    ----------
    predicted : Fraction, str or None
        What was read from the completion: a number, or a BBH task's canonical form.
    is_correct : bool
        Whether it equals the gold answer exactly.
    no_answer : bool
        Whether the completion states none.
    tier : str or None
        Where the number was found: one of `TIERS`; None for BBH.
    """

    predicted: Fraction | str | None
    is_correct: bool
    no_answer: bool
    tier: str | None = None


def score_math(completion: str, gold: str) -> Score:
    """Compare a completion's final number with the gold number.

    The number is the first one after the last "answer is" (of an equation there, what
    follows its last ``=``), else the one behind the last ``####``, else the last one of
    the completion; whatever follows a next ``Q:`` or an end token is cut before. A
    statement that leaves the number open (`stated_number`) has none, nor has a text
    whose last number is a part of an expression or open ("5 + 3", "18 =", "17 or 18").

    Parameters
    ----------
    completion : str
        What the model wrote, raw.
    gold : str
        One number, unit allowed (`parse_number`), or a GSM8K solution ending in
        ``#### number``.

    Raises
    ------
    ValueError
        If `gold` is not one number.
    """
    expected = parse_number(gold.rsplit("####", 1)[-1])
    if expected is None:
        allowed = "an integer, a decimal, a fraction a/b, each with currency or unit"
        raise ValueError(f"gold: {gold!r} is not one number. Allowed: {allowed}")
    predicted, tier = final_number(completion)
    return Score(predicted, predicted == expected, predicted is None, tier)


def parse_number(text: str) -> Fraction | None:
    """Return the only number in `text` exactly, or None.

    Currency, percent signs, markdown and units are ignored. A ratio ("3:2"), a time,
    a list or two numbers are not one number.
    """
    clean = _normalise_number_text(text)
    numbers = list(_numbers(clean))
    is_one = len(numbers) == 1 and not re.search(r"\d\s*:\s*\d", clean)
    return numbers[0][0] if is_one else None


def final_number(completion: str) -> tuple[Fraction | None, str]:
    """Return the number that a completion ends with, and the tier that found it.

    Where it is the last number only, it is none that is a part of an expression or a
    ratio ("9*2", "5 eggs + 3", "10^6", "3:2"), that something should follow ("18 +",
    "18 eggs =", "18,"), that is one of two ("17 or 18", "17 to 18") or that is denied
    ("not 18", "I doubt that it is 18", "at least 18", "almost 18", "18?"), that belongs
    to a name ("mp3") or is a group of another ("80 000"), or that stands before an
    "answer is" which names none. "About 18" is 18, rounded.
    No tier gives a number that later words take back: an admission ("I made a mistake")
    or a contrast that names another ("However, after the tax it is 3").
    """
    text = _normalise_number_text(cut_at_next_question(completion))
    statements = list(_ANSWER_IS.finditer(text))
    hashes = [match for match in _HASHES.finditer(text) if _is_final(match, text)]
    for tier, matches in {"answer_is": statements, "hashes": hashes}.items():
        if not matches:
            continue
        number, is_open = stated_number(said := text[matches[-1].end() :])
        is_open = is_open or _is_taken_back(said, number)
        if is_open or (matches is statements and _is_denial(matches[-1])):
            return None, "none"
        if number is not None:
            return number, tier
    *_, (number, match) = [(None, None), *_numbers(text)]
    if match and statements and match.end() <= statements[-1].start():
        return None, "none"  # "She has 18. The answer is unknown."
    if match is None or match.start() in {m.end() for m in _PART_OF.finditer(text)}:
        return None, "none"
    before, end = text[: match.start()], match.end()
    is_open = (
        _GOES_ON.match(text, end)
        or _TAKEN_BACK.match(text, end)
        or _is_taken_back(text[end:], number)
        or _DENIED.search(_CLAUSE_START.split(before)[-1])
        or _DOUBTED.search(_SAID_OF.split(before)[-1])
    )
    return (None, "none") if is_open else (number, "last_number")


def _is_taken_back(said: str, answer: object, parse=parse_number) -> bool:
    """Whether later words withdraw an answer, or go on to another ("But it is 3")."""
    match = _CONTRAST.search(said)  # not one of the words that were sorted
    if not match or match[0].split()[-1].casefold() in str(answer).split():
        return False
    rest = re.sub(r"[^.!?\n]*=|\bnot \S+", "", said[match.end() :][:300])
    found = (parse(rest[word.start() :]) for word in re.finditer(r"\S+", rest))
    return bool(match["no"]) or any(other not in (None, answer) for other in found)


# What makes the number behind it no answer: "9*2", "eggs + 3", "80 000", "1,50", "17 or
# 18". Of "or 18" only a whole number is the other choice: "0.6 or 60%" is one number.
_PART_OF = re.compile(
    r"(?i)[\d)%] ?[-+*×·⋅∗x/÷~] ?\(?|[^\W\d_] [+*×x/÷] \(?|\d[^\d\n=.,;:]*? - |[\d)]\("
    r"|[\w)}] ?\^|\de[-+]?|\b\d\d?:(?=\d\d?\b)|\d : |\d and |\b(?:not|plus|times) "
    r"|(?<![./])\b\d+%?(?: [a-z]+)? (?:or|nor|to) |[\d%](?: [a-z]+)? (?:by|from|of) "
    r"|\d[.,'’](?=\d)|(?<![\d.,])\d{1,3}(?: \d{3})* (?=\d{3}\b)"
)
# What makes a number the beginning of something longer: "18 +", "18 eggs =", "18,".
_GOES_ON = re.compile(
    r"(?i)[^.!\n]*?((?<=\d),|[-+*×·÷/^=(:]|\b(?:and|or|by|plus|minus)|(?<=\d )to)"
    r"[\s.?]*\Z"
)
_CLAUSE_START = re.compile(r"[.,;:!?]\s|[\d\n=]|\b(?:is|are|was|were|[Ss]o|and|but)\b")
# What denies the last number of its sentence from afar: "I doubt that it is 18".
# "She does not eat 3, so 18 remain" denies something else.
_SAID_OF = re.compile(r"[.!?;]\s|\n|\b(?:[Ss]o|(?<!thing )but|rather|therefore)\b")
_DOUBTED = re.compile(
    r"(?i)(?:n['’]t|\b(?:not|never|cannot|no ?(?:one|body))) (?:\w+ )?(?:thinks?|say"
    r"|sure|tell|convinced|believe|true|possible|the case|be that)\b|\b(?:(?<!no )doubt"
    r"|(?:wrong|incorrect|false|impossible|un(?:likely|sure|clear)|knows|wonder)"
    r" (?:that|to|if|whether)|no way|anything but|(?:may|might) (?:think|say))\b"
)
# GSM8K's "#### 18". A heading ("#### Step 2: Money") does not begin with a number; one
# that does ("#### 2. Money") has text of its own and more below it.
_HASHES = re.compile(r"####(?=[ \t(]*-?[ \t]*\.?\d)")


def _is_final(match: re.Match[str], text: str) -> bool:
    line, _, below = text[match.end() :].partition("\n")
    return not below.strip() or not re.search(r"[^\W\d_]{2}", line)


def _is_denial(statement: re.Match[str]) -> bool:
    """Whether its clause says what the answer is not, might be, or is to others."""
    is_denied = statement[0].casefold().rstrip(":").endswith(("n't", "n’t"))
    before = _CLAUSE_START.split(statement.string[: statement.start()])[-1]
    before = re.split("(?<!f)(?<!pose)(?<!sume)(?<!that)(?<!ther) The ", before)[-1]
    return is_denied or bool(_NOT_SAID.search(before))


_NOT_SAID = re.compile(
    r"(?i)n['’]t\b|\b(?:wrong|incorrect|false|untrue|if|unless|suppos\w+|assum\w+"
    r"|imagin\w+|pretend|provided|whether|doubt|unsure|uncertain|unclear|unlikely|not"
    r"|impossible|cannot|never|no way|let['’]?s say|(?:think|say)s|thought|said"
    r"|(?:claim|guess|believ)e?[sd]|(?:you|one|some\w*|many|most|people|others|they"
    r"|may|might|could)\b.*\b(?:think|say|guess|believe|claim|conclude))\b"
)


def stated_number(statement: str) -> tuple[Fraction | None, bool]:
    """Return a statement's first number, and whether it leaves its number open.

    Of an equation at its start ("4536 - 702 = 3834") the number is the result. A number
    is whole where nothing but a unit stands between it and what ends its clause: the
    end of the sentence or line, a bracket, an equals sign or a remark ("because …",
    "after 3 days"). It is open where another number comes first ("18 or 19", "5 + 3",
    "3 feet 2"), where something multiplies it ("18x", "18 tenths"), doubts it ("18?")
    or takes it back, and where what stands before denies it or asks for more ("not
    18", "half of 18"). In doubt it is open: a false right would be trained on.
    """
    is_list = re.match(r"[^\d\n]*\n[^\d\n]*(?:\d[^\n]*\n[^\n#]*|1[.)] .*)\d", statement)
    left, *results = statement.strip(": \n").partition("\n")[0].split("=")
    if results and _is_expression(left) and any(_numbers(results[-1])):
        statement = results[-1]
    number, match = next(_numbers(statement), (None, None))
    # "The answer is easy to find. She has 3" states none.
    if number is None or re.search(r"[a-z]{2}[.!?] [A-Z]", statement[: match.start()]):
        return None, False
    is_whole = _WHOLE.match(statement, match.end())
    is_refused = _TAKEN_BACK.match(statement, match.end())
    is_refused = is_refused or _DENIED.search(statement[: match.start()])
    return number, bool(is_refused or is_list or not is_whole)


# What takes back the answer before it.
_WRONG = r"(?:wrong|incorrect|false|impossible|not[ ](?:right|correct|true))\b"
_NO = (
    r"(?:no(?:pe)?[,.:!]|(?:but[ ])?(?:(?:wait|actually|oops|sorry|hmm|correction"
    r"|hold[ ]on|just[ ]kidding|scratch[ ]that|never[ ]?mind|not[ ]sure|my[ ]mistake"
    r"|let[ ]me[ ]re\w+|on[ ]second[ ]thought|i[ ](?:was[ ]wrong|made[ ]an?))\b"
    rf"|(?:th\w+|it|which)(?:[ ]can['’]t[ ]be\b|(?:['’]s|[ ]is|[ ]was)[ ]{_WRONG})))"
)
_TAKEN_BACK = re.compile(
    r"(?i)\s*\?|[^\w(]*(?:(?-i:or|as (?:well|much) as|cannot|can['’]t|isn['’]t)\b"
    rf"|(?:is|seems|would be) (?:{_WRONG}|too |not the )|(?<=[.,;:!] ){_NO})"
)
_CONTRAST = re.compile(
    r"(?i)(?:[.,;:!?-] +|\n[^\w\n]*)(?:the )?(?:(?:but|however|yet|rather|in fact"
    rf"|(?:it|answer) should be|(?:final|correct) answer|(?-i:Or|Not))\b|(?P<no>{_NO}))"
)
# What stands before a number and leaves it open: "not 18", "at least 18", "half of 18".
_DENIED = re.compile(
    r"""
      \b(?:not|never|no[ ]longer|neither|either|between|cannot|unknown|impossible
        |wrong|unlikely|hardly|anything[ ]but)\b | n['’]t\b
    | \bthan(?:[ ](?!(?:by|in)\b)\w+){0,3}[ ]\Z
    | \b(?:at[ ](?:least|most|minimum)|(?:minim|maxim)um|(?<!s[ ])up[ ]to|under|over
        |above|below|half|third|quarter|double|twice|triple|square|cube|root|log
        |almost|nearly|beyond|except|far) (?:[ ](?:of|for|from|about))?[ ]\Z
    | \b[a-z][ ][-+*/×÷][ ]\Z                # x - 18; mp3, #12; not USD18
    | (?-i:[^\W\d_](?<!\b[A-Z]{3})(?<!\bRs)-?|(?<!\#)\#)\Z
    | (?:sqrt\W*|(?<![<>=-])(?:!=|[<>≠≤≥√])|\\(?:[lg]eq?|neq?|ln|log)[ {(]*|[}][ ]?\{
        |~~|-[ ]?[(\[{])[ ]?\Z
    """,
    re.VERBOSE | re.IGNORECASE,
)
_WORD = (  # a number in words
    "(?:half|third|quarter|fourth|one|two|three|four|five|six|seven|eight|nine|ten"
    "|eleven|twelve|[a-z]+teen|(?:twen|thir|for|fif|six|seven|eigh|nine)ty)"
)
# "m^2", "ft3", "in^2"
_POWER = r"(?<=m|t|n)\^?[23](?![\d.,]*\d|\w)"
# What may stand behind a number that is whole, up to the end of its clause.
_WHOLE = re.compile(
    rf"""
    (?: :00\b )? (?! (?-i:[^\W\d_ghlms])(?![a-z]) | [^\W\x00-\x7f]  # 18x
      | [ ]?[-\\]?(?:pi|π|halves|thirds|(?:four|fif|six|seven|eigh|nin|ten|hundred)ths
          |squared|cubed|(?:ten|hundred|thousand|[mbt]r?illion|lakh|crore|dozen)s?
          |mil|[mb]n|[kxy])\b | [ ]?(?:\+|[十百千万亿萬億兆])
      | [^.!\n]*?(?:[-+*×·÷/^=,(:]
          |\b(?:and|or|to|plus|minus|times|by|(?<!left[ ])over))[\s.]*\Z
      | [ ](?:[a-z]+[ ])?(?:at[ ](?:the[ ])?(?:least|most)|(?:min|max)imum)\b
      | [ a-z]*[,.!]?[ ](?:(?:no|wait)[ ]wait|is[ ]not\b|\({_WRONG}|\(?{_NO}) )
    (?: (?! \b(?:(?:and|or|to|times|by|over)[ ](?:an?[ ])?{_WORD}|plus|minus|and[ ]up)\b
          | (?:,|[ ]and)[ ]\w[ ]?= ) (?: [^\d?] | {_POWER} ) )*?  # x = 5, y = 7
    (?: \Z | \n | (?<!\bvs)[.!](?![.!\d]) | = | >> | [ ]\((?!or|and|plus|base)
      | (?<=[a-z]):(?![ ]?\d+\W*\Z) | [ ]\#\#\#\#           # 18 #### 18
      | (?<=[a-z]),[ ]or[ ](?=\d+[ ][a-z])                  # 15 dollars, or 3 bills
      | [ ](?:after|as|at|because|before|during|each|every|for|if|in|instead|leaving|not
          |on|out(?![ ]of[ ](?:the[ ])?\d)|per(?![ ]\d)|rather|since|so|that|when|where
          |which|who|with|(?:by|over)[ ]the)\b
        (?![ ]?(?:[-+*/×÷]|(?:x|and|by|base)\b)[ ]?\d|[^.\d\n]*\b(?:and|else)[ ]\d) )
    """,
    re.VERBOSE | re.IGNORECASE,
)


def _is_expression(text: str) -> bool:
    """Whether these are numbers, perhaps with units, and signs between them only."""
    tokens = re.findall(r"\d[\d,.]*|[^\W\d_]+|[^\s\w]", text)
    first = next((i for i, token in enumerate(tokens) if token[0].isdigit()), 0)
    has_sign = any(token in _SIGNS for token in tokens[first + 1 :])
    return has_sign and not any(token.casefold() in _BREAKS for token in tokens)


_SIGNS = frozenset("+-*/×÷x")
_BREAKS = frozenset(", . ; : because since as that which so and or if".split())


def cut_at_next_question(completion: str) -> str:
    """Return the completion up to its end token, or to the next question block."""
    text = completion.replace("\r\n", "\n")
    text = next((part for part in _CONTROL_TOKEN.split(text) if part.strip()), "")
    text = _NEXT_QUESTION.split(text, maxsplit=1)[0]
    answered = _ANSWER_IS.search(text) or _HASHES.search(text)
    if answered and (following := _NEXT_TASK.search(text, answered.end())):
        return text[: following.start()]
    return text


def _normalise_number_text(text: str) -> str:
    """NFKC, one minus sign, plain digits, no currency, markup or exponents."""
    text = text if text.isascii() else _fold_unicode_numbers(text)
    text = _without_latex(text) if "\\" in text or "{,}" in text else text
    text = _GROUPED.sub(lambda match: re.sub(r"\D", "", match[0]), text)
    text = re.sub(rf"-[ ]?(?:[A-Z]{{2,3}})?[{_CURRENCY}*_`]+(?=[\d.])", "-", text)
    text = re.sub(r"-[({\[](?=[\d./]+[)}\]])", "-", text)
    text = re.sub(r"(?<=\d)( ?)\*\*\1(?=\d)", "^", text)
    text = re.sub(r"(?<!\S)\*([^\s*]+)\*(?![\w*(])", r"\1", text)  # *18*
    text = re.sub(rf"[{_CURRENCY}]|\*\*|</?[a-z]+>", " ", text)
    # "is - 3" is a sign apart from its digits; after a number it would subtract.
    text = re.sub(r"(\bis:?|[=(#])([ \t]*)-[ \t]+(?=\.?\d)", r"\1\2-", text)
    text = re.sub(r"(?i)\b(?:negative|minus)[ \t]+(?=\.?\d)", "-", text)
    return re.sub(r"[ \t]+", " ", text)


def _fold_unicode_numbers(text: str) -> str:
    text = _GROUPED.sub(lambda m: re.sub(r"\D", "", m[0]), _without_unseen(text))
    # NFKC alone would read "2½" as 21/2 and "5²" as 52.
    text = re.sub(r"(?<=\d)(?=[¼-¾⅐-⅞↉])", " ", text)
    # A power; after "cm", a unit.
    text = re.sub(r"(?<=\d)(?=[²³¹⁰⁴-⁹⁻])", "^", text)
    text = re.sub(r"(?<![⁻^])[²³¹⁰⁴-⁹]", "", text)
    text = unicodedata.normalize("NFKC", _DASHES.sub("-", text))
    text = "".join(str(int(c)) if c.isdecimal() else c for c in text)
    return text.translate({0x2044: "/", 0x66B: ".", 0x66C: ","})


def _without_latex(text: str) -> str:
    r"""Write ``\frac{3}{4}`` as 3/4, ``\times`` as ×, ``\boxed{5}`` as 5."""
    text = re.sub(r"(?<=\d)(?=\\[dt]?frac)", " ", text)
    text = re.sub(r"\\[dt]?frac(\d)(\d)", r"\1/\2", text)
    text = re.sub(r"\\[dt]?frac\{(-?\d+)\}\{(\d+)\}", r"\1/\2", text)
    text = re.sub(r"\^\{(-?\d+)\}", r"^\1", text)
    text = re.sub(r"\\(?:times|cdot)\b", "×", text)
    text = re.sub(r"\\(?:boxed|text|textbf|mathbf)\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"(?<=\d)(?:\\[,;:! ]|\{,\}|,\\!)(?=\d{3})", ",", text)
    return re.sub(r"\\(?=[$%-])", "", text)


def _without_unseen(text: str) -> str:
    """Drop what has no width: zero-width spaces and joiners, marks of direction."""
    return "".join(c for c in text if unicodedata.category(c) != "Cf")


_MAX_DIGITS = 1000  # a model that repeats a digit for ever wrote no number

# The sign counts only where no digit precedes ("7-5" and "7 -5" subtract); commas only
# in strict groups of three ("1,2" is two numbers).
_NUMBER = re.compile(
    r"""
    (?=[-.\d]) (?P<sign>(?<![\w)])(?<!\d\ )-)?
    (?: (?:(?P<whole>\d+)\ )?(?P<over>\d+)/(?P<under>\d+)(?![\d/])      # 2 1/2, 1/2
      | (?P<decimal> (?: (?<![\d,]) [1-9]\d{0,2} (?:,\d{3})+ (?!,?\d)    # 10,000
          | \d+ ) (?:\.\d+)? | (?<![\d.]) \.\d+ ) )                      # .5
    """,
    re.VERBOSE | re.ASCII,
)


def _numbers(text: str) -> Iterator[tuple[Fraction, re.Match[str]]]:
    """Yield the numbers of normalised text, left to right, each with its match."""
    for match in _NUMBER.finditer(text):
        whole, over, under = match.group("whole", "over", "under")
        if len(match[0]) > _MAX_DIGITS or (under and not int(under)):
            continue
        if under:
            number = int(whole or 0) + Fraction(int(over), int(under))
        else:
            number = Fraction(match["decimal"].replace(",", ""))
        yield -number if match["sign"] else number, match


# --- BigBench-Hard -------------------------------------------------------------------


def score_bbh(task: str, completion: str, target: str, *, prompt_mode: str) -> Score:
    """Compare a completion's final answer with the target, by the task's type.

    The answer is what follows the last "answer is" on its line. Without such a
    sentence it is the first line's beginning in ``answer_only``; in
    ``chain_of_thought`` only a last line that holds a letter, a choice, a number or
    brackets and nothing else.

    Parameters
    ----------
    task : str
        A BBH file's stem. Other stems (the micro-world's families) compare normalised
        text: case, spacing, quotes and a final period do not count.
    completion : str
        What the model wrote, raw.
    target : str
        The gold answer as published.
    prompt_mode : str
        One of `profiles.GENERIC_PROMPT_MODES`.

    Raises
    ------
    ValueError
        Unknown `prompt_mode`, or a `target` that the task's type does not allow.
    """
    if prompt_mode not in GENERIC_PROMPT_MODES:
        said = f"prompt_mode: {prompt_mode!r}"
        raise ValueError(f"{said}. Allowed: {GENERIC_PROMPT_MODES}")
    parse = _PARSERS.get(task, _text)
    # Three published targets of letter tasks are the option's text ("Monsters, Inc").
    if parse is _letter and _letter(_plain(target)) is None:
        parse = _text
    expected = parse(_plain(target))
    if expected is None:
        raise ValueError(f"target: {target!r} is no answer of task {task!r}")
    predicted = _final_answer(completion, parse, prompt_mode)
    return Score(predicted, predicted == expected, predicted is None)


Parser = Callable[[str], "str | None"]


def _final_answer(completion: str, parse: Parser, prompt_mode: str) -> str | None:
    text = cut_at_next_question(completion)
    statements = list(_ANSWER_IS.finditer(text))
    if statements and _is_denial(statements[-1]):
        return None
    said = text[statements[-1].end() :] if statements else text
    lines = [line for line in map(_plain, said.splitlines()) if line]
    if not lines:
        return None
    if statements or prompt_mode == "answer_only":
        is_list = parse is _word_list
        predicted = parse(" ".join(_list_lines(lines)) if is_list else lines[0])
        return None if _is_taken_back("\n".join(lines), predicted, parse) else predicted
    predicted = None if parse in (_text, _word_list) else parse(lines[-1])
    is_bare = predicted is not None and len(_text(lines[-1])) <= len(predicted) + 2
    return predicted if is_bare else None


def _list_lines(lines: list[str]) -> list[str]:
    """The first line, or the lines of a list: one word each, or up to a comma."""
    items = [re.sub(r"^[-*+•–]\s+", "", line) for line in lines]
    is_item = re.compile(r"(?:\W?(?:\d+|[A-Za-z]\W)\W*\s)?\S+|.*,").fullmatch
    count = len(list(itertools.takewhile(is_item, items)))
    return items[: count + (not count or items[count - 1].endswith(","))]


def _plain(text: str) -> str:
    """NFKC, one minus sign, nothing unseen, no emphasis or label, single spaces."""
    text = unicodedata.normalize("NFKC", _without_unseen(text))
    text = re.sub(r"\$|</?[a-z]+>", "", text.replace("\u2212", "-"))
    for _ in range(2):  # \boxed{\text{B}}
        text = re.sub(r"\\(?:boxed|text)\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\s+", " ", text.replace("**", "")).strip()
    return re.sub(r"^(?:(?:the|final) )*answer:\s*", "", text, flags=re.IGNORECASE)


def _text(line: str) -> str | None:
    """Case, spacing, quotes and a final period do not count; one sentence."""
    return re.split(r"(?<=[^.])\.\s", line)[0].strip(" .\"'`").casefold() or None


_MARKS = " \"'`*_[{“”‘’\\"
# What names an option: "(B)", or a bare letter that is no word ("A dog", "I").
_OPTION = re.compile(r"\(([A-Za-z])\)|\b([A-Z])(?=[.):,;\"'`’”*_\]}]|$| or\b| and\b)")


def _letter(line: str) -> str | None:
    """``(B)``, ``B.``, "option (B)"; two letters in one clause are no answer."""
    lead = r"(?i)^\W*boxed\{|^(?:the )?(?:correct )?(?:option|choice|letter)\b:?"
    line = re.sub(lead, "", line).lstrip(_MARKS)
    match = _OPTION.match(line)
    if match is None or _TAKEN_BACK.match(line, match.end()):
        return None
    # A reason may name the others; what is joined to the first by a comma is a list.
    reason = r"\.\s|;(?! \(| [A-Z]\W)|,?\s(?:because|since|as|not|rather|instead)\b"
    clause = re.split(reason, line, maxsplit=1)[0]
    named = {f"({a or b})".upper() for a, b in _OPTION.findall(clause)}
    return named.pop() if len(named) == 1 else None


# What makes another thing of the word before it: "no idea", "valid is wrong".
_TURNS = set(
    "idea way one answer problem doubt no not xor nand nor iff wrong incorrect false "
    "if unless only clue longer different matter conclusion solution when more".split()
)
_LEAD_IN = set("that the this argument answer statement it is deductively".split())


def _choice(*allowed: str) -> Parser:
    """A parser of one word out of `allowed`, whole words only, case-insensitive."""
    words = {word.casefold(): word for word in allowed}

    def parse(line: str) -> str | None:
        clause = re.split(r"[.,;:!]", line.strip(_MARKS + "("), maxsplit=1)[0]
        found = re.findall(r"[a-z]+", clause.casefold())
        said = {word for word in found if word in words}
        if len(said) != 1:
            return None
        start = found.index(word := said.pop())
        end = line.casefold().find(word) + len(word)
        is_open = re.search(r"[~¬^]|!=", line) or _TAKEN_BACK.match(line, end)
        is_open = is_open or _TURNS.intersection(found[start + 1 :][:2])
        is_open = is_open or re.match(rf"(?i)\W*(?:{'|'.join(words)})\b", line[end:])
        return None if is_open or set(found[:start]) - _LEAD_IN else words[word]

    return parse


def _integer(line: str) -> str | None:
    number, is_open = stated_number(_normalise_number_text(f"is {line}"))
    is_whole = number is not None and number.denominator == 1
    return str(number) if is_whole and not is_open else None


def _word_list(line: str) -> str | None:
    """Marks and numbers around words do not count; numbers must count up from 1."""
    first = 97 if re.match(r"\(?[Aa][.):]\s", line) else 1  # "a. x b. y" counts from a
    label = r"(?:^|(?<=[\s,;]))[(#]?(\d+|[A-Za-z](?=[.):]))[.):]?(?:\s|$)"
    counted = map(str if first == 1 else chr, itertools.count(first))
    line = re.sub(label, lambda m: "" if m[1].lower() == next(counted) else m[0], line)
    line = re.sub(r"(,.*?),? and (?=\S+$)", r"\1, ", line)
    words = re.split(r"[\s,;|/<>→()\[\]{}]+", _text(line) or "")
    return " ".join(word for w in words if (word := w.strip("\"'`“”‘’*_-."))) or None


def _brackets(line: str) -> str | None:
    taken_back = r"(?!\s*(?:\?|is (?:wrong|not)\b))"
    match = re.fullmatch(
        rf"([\[\](){{}}<>\s]+){taken_back}[^\[\](){{}}<>]*", line.strip("\"'` ")
    )
    return " ".join("".join(match[1].split())) if match else None


_PARSERS = {task.removeprefix("bbh/"): _letter for task in BBH_TASKS} | {
    "boolean_expressions": _choice("True", "False"),
    "causal_judgement": _choice("Yes", "No"),
    "dyck_languages": _brackets,
    "formal_fallacies": _choice("valid", "invalid"),
    "multistep_arithmetic_two": _integer,
    "navigate": _choice("Yes", "No"),
    "object_counting": _integer,
    "sports_understanding": _choice("yes", "no"),
    "web_of_lies": _choice("Yes", "No"),
    "word_sorting": _word_list,
}


# --- scores of others, for comparison only -------------------------------------------


def reference_score(completion: str, gold: str) -> bool:
    """Score as the paper's reference code does, faults and all.

    The last match of its pattern on either side, compared as floats; a completion
    without a number is wrong, and a gold without one counts as right.

    Source: github.com/FranxYao/FlanT5-CoT-Specialization, ``test_answer``.
    """
    p, e = (re.findall(r"\d*\.?\d+", text) for text in (completion, gold))
    return bool(p) and (not e or float(p[-1]) == float(e[-1]))


def lm_eval_flexible_score(completion: str, gold: str) -> bool:
    """Score as lm-eval's ``gsm8k_cot`` with ``flexible-extract``.

    The completion is cut at a next question as ours is; lm-eval stops at any "Q:".

    Source: lm-eval 0.4.13, ``tasks/gsm8k/gsm8k-cot.yaml``.
    """
    pattern = r"(-?[$0-9.,]{2,})|(-?[0-9]+)"
    matches = re.findall(pattern, cut_at_next_question(completion))
    predicted = next(filter(None, matches[-1])) if matches else "[invalid]"
    return _lm_eval_clean(predicted) == _lm_eval_clean(gold.split("####")[-1].strip())


def _lm_eval_clean(text: str) -> str:
    for ignored in (",", r"\$", r"(?s).*#### ", r"\.$"):
        text = re.sub(ignored, "", text)
    return text.lower()
