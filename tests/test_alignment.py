"""Alignment: naive oracles, properties over random traces, real text and tokenizers."""

import dataclasses
import functools
import json
from math import log

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from tokenizers import pre_tokenizers as splitters
from transformers import PreTrainedTokenizerFast

from cotspec.alignment import SOFT_RULES, Rule, TeacherTrace, align, align_all
from cotspec.alignment.matching import equal_partners
from cotspec.alignment.records import token_bytes
from cotspec.alignment.student import vocabulary_bytes

SENTENCES = [
    "Anna has 12 apples and buys 30 more.\nSo she has 12 + 30 = 42 apples.",
    "Each box holds 7 pens, so 6 boxes hold 6*7=42 pens.\nThe answer is 42.",
    "Ben's café sold $5 teas; he earned 5 x 8 = $40 — not bad.",
    "The train left at 10:30 and took 2.5 hours, i.e. 150 minutes.",
    "She was able to read  two\t pages\n\nper day, 1/2 of what he read.",
]
FIXTURES = [HealthCheck.function_scoped_fixture]
PROPERTY = {"max_examples": 40, "deadline": None, "derandomize": True}


# Tokenizers of every kind, trained in memory ------------------------------------------


def wrapped(tokenizer, **special):
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@pytest.fixture(scope="session")
def byte_level():
    """A GPT-2-like tokenizer: byte-level BPE, no unknown token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = splitters.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = splitters.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return wrapped(tokenizer)


@pytest.fixture(scope="session")
def folding_unigram():
    """A T5-like tokenizer: words split at whitespace, each with a mark."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = splitters.Sequence(
        [splitters.WhitespaceSplit(), splitters.Metaspace()]
    )
    tokenizer.decoder = decoders.Metaspace()
    specials = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=specials, unk_token="<unk>"
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return wrapped(tokenizer, unk_token="<unk>", eos_token="</s>", pad_token="<pad>")


@pytest.fixture(scope="session")
def byte_fallback():
    """A Llama-like tokenizer: marks for spaces only, newlines as byte tokens."""
    pieces = sorted({c for text in SENTENCES for c in text if c.isascii() and c > " "})
    words = ["▁has", "▁apple", "s", "▁1", "2", "An", "na", "▁Anna", "▁"]
    tokens = ["<unk>", *[f"<0x{byte:02X}>" for byte in range(256)], *words, *pieces]
    vocab = [(token, -float(i > 256)) for i, token in enumerate(dict.fromkeys(tokens))]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = splitters.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return wrapped(tokenizer, unk_token="<unk>")


@pytest.fixture(
    scope="session", params=["byte_level", "folding_unigram", "byte_fallback"]
)
def any_student(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def codex_traces(data_dir):
    """The 20 real solutions, without the prompt's last tokens and final newlines."""
    file = data_dir / "codex" / "per_step_probs_question0.json"
    traces = []
    for steps in json.loads(file.read_text()):
        steps = steps[2:]
        while steps[-1][0][0] == "\n":
            steps = steps[:-1]
        traces.append(TeacherTrace.from_token_strings(steps))
    return traces


# Traces -------------------------------------------------------------------------------


table_of = functools.cache(vocabulary_bytes)


def spelled(tokenizer, ids):
    """The bytes of each token, straight from the vocabulary."""
    table = table_of(tokenizer)
    return [table[i] for i in ids]


def text_tokens(tokenizer):
    """What a token's bytes name: {bytes: id}, control tokens left out."""
    special = set(tokenizer.all_special_ids)
    table = enumerate(table_of(tokenizer))
    return {name: i for i, name in table if name and i not in special}


def random_trace(text, pieces, vocabulary, rng, k=5):
    """A trace of these pieces with seeded alternatives; the sampled one is among k."""
    probs = np.sort(rng.dirichlet(np.ones(k + 1), len(pieces)), axis=1)[:, ::-1]
    picks = rng.integers(0, len(vocabulary), (len(pieces), k))
    topk = [[vocabulary[i] for i in row] for row in picks]
    place = rng.integers(0, k, len(pieces))
    for row, at, piece in zip(topk, place, pieces, strict=True):
        row[:] = [name if name != piece else b"\xff" for name in row]
        row[at] = piece
    topk_logprobs = np.log(probs[:, :k])
    logprobs = topk_logprobs[np.arange(len(pieces)), place]
    topk = tuple(map(tuple, topk))
    return TeacherTrace(text, tuple(pieces), logprobs, topk, topk_logprobs)


def cut(text, rng):
    """The text's bytes cut at random: a teacher with any tokenization at all."""
    raw = text.encode()
    ends = np.flatnonzero(rng.random(len(raw) - 1) < 0.35) + 1 if len(raw) > 1 else []
    return [p.tobytes() for p in np.split(np.frombuffer(raw, np.uint8), ends)]


def validate(targets):
    """Whatever is aligned, this holds."""
    ids, probs, rows = targets.topk_ids, targets.topk_probs, len(targets.student_ids)
    fields = (ids, probs, targets.tail_mass, targets.rule)
    assert [len(field) for field in fields] == [rows] * 4
    assert ids.shape == probs.shape
    assert np.allclose(probs.sum(1, dtype=np.float64) + targets.tail_mass, 1, atol=1e-6)
    assert ((probs >= 0) & (probs <= 1 + 1e-6)).all()
    assert not ((ids < 0) & (probs != 0)).any(), "mass in an empty slot"
    assert np.array_equal(ids[:, 0], targets.student_ids)
    ordered = np.sort(ids, axis=1)
    repeats = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    assert not repeats.any(), "an id twice"
    assert np.isin(targets.rule, list(Rule)).all()
    assert (probs[~is_soft(targets), 0] == 1).all(), "not one-hot"


def slots(targets, position):
    """The slots of a position as {student id: probability}."""
    row = zip(targets.topk_ids[position], targets.topk_probs[position], strict=True)
    return {int(i): float(p) for i, p in row if i >= 0}


def candidates(tokenizer, targets, position):
    """The slots of a position as {token: probability}."""
    found = slots(targets, position)
    names = tokenizer.convert_ids_to_tokens(list(found))
    return {name: round(p, 5) for name, p in zip(names, found.values(), strict=True)}


def tokens_of(tokenizer, targets):
    return tokenizer.convert_ids_to_tokens(targets.student_ids.tolist())


def rule_names(targets):
    return [Rule(rule).name for rule in targets.rule]


def is_soft(targets):
    return np.isin(targets.rule, SOFT_RULES)


# The dynamic program against the textbook ---------------------------------------------


@functools.cache
def naive_edit_distance(a, b):
    table = [[i + j for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            change = table[i - 1][j - 1] + (a[i - 1] != b[j - 1])
            table[i][j] = min(change, table[i - 1][j] + 1, table[i][j - 1] + 1)
    return table[-1][-1]


def naive_partners(left, right):
    """The paper's rule, cell by cell: partner of every right token, or None."""
    cost = [[naive_edit_distance(a, b) for b in right] for a in left]
    total = {(-1, -1): 0}
    for i in range(len(left)):
        for j in range(len(right)):
            steps = [(i - 1, j - 1), (i - 1, j), (i, j - 1)]
            total[i, j] = cost[i][j] + min(total.get(s, np.inf) for s in steps)
    path, (i, j) = [], (len(left) - 1, len(right) - 1)
    while (i, j) != (-1, -1):
        path.append((i, j))
        steps = [(i - 1, j - 1), (i - 1, j), (i, j - 1)]
        i, j = min(steps, key=lambda s: total.get(s, np.inf))  # the first of equals
    partners = []
    for j in range(len(right)):
        mine = [i for i, other in path if other == j]
        theirs = [other for i, other in path if i == mine[0]]
        is_pair = len(mine) == len(theirs) == 1 and cost[mine[0]][j] == 0
        partners.append(mine[0] if is_pair else None)
    return partners


def test_warping_equals_the_naive_program_on_thousands_of_random_pairs():
    rng = np.random.default_rng(0)
    syllables = ["a", "b", "ab", "ba", "aab", "", "c", "▁é"]
    for _ in range(3000):
        pair = [list(rng.choice(syllables, rng.integers(1, 8))) for _ in "lr"]
        assert equal_partners(*pair) == naive_partners(*pair)


def test_dtw_equals_the_naive_program_on_real_rationales(rationales, gpt2, t5):
    rng = np.random.default_rng(1)
    texts = [rationales[i] for i in rng.choice(len(rationales), 20, replace=False)]
    traces = gpt2_traces(texts, gpt2)
    aligned = align_all(traces, t5, method="dtw").targets
    for trace, targets in zip(traces, aligned, strict=True):
        pieces = [piece.decode("utf-8", "replace") for piece in trace.token_bytes]
        left = [piece.replace(" ", "") for piece in pieces]
        right = [token.replace("▁", "") for token in tokens_of(t5, targets)]
        expected = [partner is not None for partner in naive_partners(left, right)]
        assert is_soft(targets).tolist() == expected


def gpt2_traces(texts, gpt2, vocabulary=None):
    """Real tokens; no teacher's top five exist for them, so alternatives are seeded.

    They are drawn from the texts' own tokens unless a vocabulary is given.
    """
    encoded = gpt2(texts, add_special_tokens=False).input_ids
    pieces = [spelled(gpt2, ids) for ids in encoded]
    vocabulary = vocabulary or [piece for row in pieces for piece in row]
    rng = np.random.default_rng(0)
    return [
        random_trace(text, row, vocabulary, rng)
        for text, row in zip(texts, pieces, strict=True)
    ]


# Offsets: small examples that can be checked by eye ----------------------------------


def steps(*rows):
    """A trace by steps ``{token: probability}``, the sampled token first."""
    return TeacherTrace.from_token_strings(
        [[next(iter(row.items())), *row.items()] for row in rows]
    )


def test_worked_example_of_the_docstring(t5):
    trace = steps(
        {"earns": 0.7, "makes": 0.2}, {" $": 0.8, " 12": 0.1}, {"12": 0.9, "1": 0.05}
    )
    targets = align(trace, t5)
    assert tokens_of(t5, targets) == ["▁earn", "s", "▁$12"]
    assert rule_names(targets) == ["STARTS_TOGETHER", "INSIDE", "STARTS_TOGETHER"]
    assert candidates(t5, targets, 0) == {"▁earn": 0.7, "▁makes": 0.2}
    assert candidates(t5, targets, 1) == {"s": 1}
    assert candidates(t5, targets, 2) == {"▁$12": 0.72, "▁12": 0.1}
    assert np.allclose(targets.tail_mass, [0.1, 0, 0.18])


def test_the_first_token_has_a_distribution(t5):
    trace = steps({"If": 0.1, "She": 0.3, " She": 0.2, "\n": 0.1})
    for method in ("offsets", "dtw"):
        targets = align(trace, t5, method=method)
        assert rule_names(targets) == ["SAME_SPAN"]
        assert candidates(t5, targets, 0) == {"▁If": 0.1, "▁She": 0.5}
        assert np.allclose(targets.tail_mass, 0.4)


MAY = {"May": 1.0, "x": 0.0}
# By claim: the teacher's steps, and the last student token's candidates.
LAST_TOKENS = {
    "a folded newline is no decision of the student": (
        [MAY, {"\n": 0.4, ".": 0.6}, {"May": 0.7, "April": 0.2}],
        {"▁May": 0.7, "▁April": 0.2},
    ),
    "a candidate gets a mark for its space, within a word none": (
        [MAY, {"s": 0.5, " in": 0.3, "in": 0.1, "[INST]": 0.05}],
        {"s": 0.5, "▁in": 0.3, "in": 0.1},
    ),
    "colliding candidates add": (
        [{"May": 0.4, " May": 0.3, " babysits": 0.1, " babys": 0.1}],
        {"▁May": 0.7, "▁baby": 0.2},
    ),
    "what the student cannot write goes into the tail": (
        [{"May": 0.5, "{": 0.2, "\n\n": 0.1, "<|endoftext|>": 0.1}],
        {"▁May": 0.5, "▁": 0.2},
    ),
    "control tokens of other models spell nothing": (
        [{"May": 0.4, "<｜end▁of▁sentence｜>": 0.2, "<|im_end|>": 0.2, "</s>": 0.2}],
        {"▁May": 0.4},
    ),
}


@pytest.mark.parametrize("claim", LAST_TOKENS)
def test_of_the_last_token(claim, t5):
    rows, expected = LAST_TOKENS[claim]
    targets = align(steps(*rows), t5)
    assert candidates(t5, targets, -1) == expected
    assert np.isclose(targets.tail_mass[-1], 1 - sum(expected.values()))


def test_a_sampled_token_outside_the_top_k_takes_the_last_slot(t5):
    row = [("May", 0.05), ("April", 0.5), ("June", 0.2), ("July", 0.1)]
    targets = align(TeacherTrace.from_token_strings([row]), t5)
    expected = {"▁May": 0.05, "▁April": 0.5, "▁June": 0.2}
    assert candidates(t5, targets, 0) == expected
    assert np.allclose(targets.tail_mass, 0.25)


def test_after_a_bare_mark_only_what_begins_with_it_is_left(t5):
    trace = steps({"2": 1.0, "": 0.0, "x": 0.0}, {" x": 0.5, " in": 0.2, " he": 0.2})
    targets = align(trace, t5)
    assert tokens_of(t5, targets) == ["▁2", "▁", "x"]
    assert candidates(t5, targets, 1) == {"▁": 0.7, "▁in": 0.2}
    assert candidates(t5, targets, 2) == {"x": 0.625, "he": 0.25}
    assert np.allclose(targets.tail_mass[1:], [0.1, 0.125])


def test_a_space_alone_in_a_byte_level_student_is_a_token(byte_level):
    text = "a  b"
    trace = steps(*[{c: 0.5, "z": 0.3} for c in text])
    targets = align(trace, byte_level)
    validate(targets)
    assert b"".join(spelled(byte_level, targets.student_ids)).decode() == text


def without_alternatives(text, pieces, probs):
    none = ((),) * len(pieces), np.zeros((len(pieces), 0))
    return TeacherTrace(text, tuple(pieces), np.log(probs), *none)


def test_unicode_normalisation_keeps_later_tokens_in_place(t5):
    text = "½ ﬁve … e\u0301t\u00a0May"
    raw = text.encode()
    pieces = [raw[: -len(" May")], raw[-len(" May") : -3], b"May"]
    trace = without_alternatives(text, pieces, [0.5, 0.5, 0.25])
    targets = align(trace, t5)
    validate(targets)
    assert tokens_of(t5, targets)[-1] == "▁May"
    assert targets.rule[-1] == Rule.SAME_SPAN
    assert np.isclose(targets.topk_probs[-1, 0], 0.25)


def test_a_character_of_several_teacher_tokens_is_one_chain(byte_level, t5):
    raw = "a 😀".encode()
    pieces = (b"a", raw[1:3], raw[3:])
    trace = without_alternatives("a 😀", pieces, [0.5, 0.8, 0.5])
    targets = align(trace, t5)
    assert tokens_of(t5, targets)[-2:] == ["▁", "<unk>"]
    assert rule_names(targets)[-2] == "STARTS_TOGETHER"


# Properties ---------------------------------------------------------------------------


texts = st.lists(
    st.sampled_from([*"abAé½😀.,/0127$ \n\t", "  ", "Anna ", " has", " 42", "\n\n"]),
    min_size=1,
    max_size=25,
).map("".join)


@settings(**PROPERTY, suppress_health_check=FIXTURES)
@given(texts.filter(str.strip), st.integers(0, 2**32 - 1))
def test_any_text_cut_anywhere_gives_valid_targets(any_student, text, seed):
    rng = np.random.default_rng(seed)
    names = [b"a", b" a", b".", b" has", b"\n", b" ", b"42", b"\xc3", b"", b" {"]
    ids = any_student(text, add_special_tokens=False).input_ids
    for vocabulary in (names, [b"\xff"]):
        trace = random_trace(text, cut(text, rng), vocabulary, rng)
        for method in ("dtw", "offsets"):
            targets = align(trace, any_student, method=method)
            validate(targets)
            assert targets.student_ids.tolist() == ids
    # Where spans agree, the label has the teacher's value: here nothing collides.
    sampled = np.exp(trace.token_logprobs)
    same = np.isin(targets.rule, (Rule.IDENTICAL, Rule.SAME_SPAN))
    assert np.isin(targets.topk_probs[same, 0], sampled.astype(np.float32)).all()


@pytest.mark.parametrize("method", ["offsets", "dtw"])
def test_several_processes_give_what_one_gives(folding_unigram, method):
    rng = np.random.default_rng(0)
    traces = [random_trace(s, cut(s, rng), [b"a", b" b"], rng) for s in SENTENCES] * 60
    two = align_all(traces, folding_unigram, method=method, num_proc=2)
    for trace, together in zip(traces, two.targets, strict=True):
        alone = align(trace, folding_unigram, method=method)
        for name in (f.name for f in dataclasses.fields(alone)):
            assert np.array_equal(getattr(together, name), getattr(alone, name)), name


@pytest.mark.parametrize("method", ["offsets", "dtw"])
@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback", "gpt2", "t5"])
def test_with_the_teachers_own_tokenizer_nothing_changes(kind, method, request):
    tokenizer = request.getfixturevalue(kind)
    rng = np.random.default_rng(0)
    exact = text_tokens(tokenizer)
    if kind == "t5":  # which reads some of its tokens' texts as others
        exact = {name: exact[name] for name in (b" the", b"s")}
    for text in [f"Anna {sentence}" for sentence in SENTENCES]:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        pieces = spelled(tokenizer, ids)
        if pieces[0][:1] == b" ":  # the dummy prefix
            pieces[0] = pieces[0][1:]
        text = b"".join(pieces).decode()  # T5 folds spaces and newlines
        trace = random_trace(text, pieces, list(exact), rng)
        targets = align(trace, tokenizer, method=method)
        if method == "offsets":
            assert set(targets.rule[1:].tolist()) == {Rule.IDENTICAL}
            assert targets.rule[0] <= Rule.SAME_SPAN
        names = exact | dict(zip(pieces, ids, strict=True))
        # The first token's alternatives may be spelled with or without a mark.
        for t in np.flatnonzero(is_soft(targets))[1:]:
            assert slots(targets, t) == pytest.approx(teachers_slots(trace, t, names))


def teachers_slots(trace, step, exact):
    sums = {}
    row = zip(trace.topk_bytes[step], np.exp(trace.topk_logprobs[step]), strict=True)
    for name, prob in row:
        if name in exact:
            sums[exact[name]] = sums.get(exact[name], 0) + prob
    return sums


# Real data ----------------------------------------------------------------------------


def test_every_codex_solution_gives_valid_targets_and_offsets_soften_more(
    codex_traces, t5
):
    by_dtw = align_all(codex_traces, t5, method="dtw")
    by_offsets = align_all(codex_traces, t5)
    assert by_dtw.reasons == by_offsets.reasons == [""] * 20
    softened = np.zeros(2)
    rows = zip(codex_traces, by_dtw.targets, by_offsets.targets, strict=True)
    for trace, papers, ours in rows:
        ids = t5(trace.text, add_special_tokens=False).input_ids
        for targets in (papers, ours):
            validate(targets)
            assert targets.student_ids.tolist() == ids
        # What the paper softens has the same probabilities here.
        where = is_soft(papers)
        assert is_soft(ours)[where].all()
        assert np.array_equal(ours.topk_ids[where], papers.topk_ids[where])
        assert np.array_equal(ours.topk_probs[where], papers.topk_probs[where])
        softened += where.sum(), is_soft(ours).sum()
    assert softened[0] < softened[1]


def read_alone(t5, name, is_word):
    """The first token of a piece of text: a whole word, or the rest of one."""
    text = name.decode("utf-8", "ignore")
    if text == " ":
        return "▁"
    model = t5.backend_tokenizer.model
    is_word = is_word or text[:1].isspace()
    read = t5.tokenize(text) if is_word else [t.value for t in model.tokenize(text)]
    return read[0] if read else "<unk>"


def expected_slots(t5, label, sampled, alternatives, is_word):
    """Sums by first token; of k + 1 candidates the label and the best k - 1 stay."""
    sums = {label: sampled[1]}
    for name, prob in alternatives:
        token = read_alone(t5, name, is_word)
        if token != "<unk>" and name != sampled[0] and prob > 0:
            sums[token] = sums.get(token, 0) + prob
    best = sorted((t for t in sums if t != label), key=sums.get, reverse=True)
    return {t: sums[t] for t in [label, *best[: len(alternatives) - 1]]}


def test_alternatives_are_read_as_t5_itself_reads_them(codex_traces, t5):
    """Oracle: one token at a time, with the tokenizer's own calls."""
    compared = 0
    aligned = align_all(codex_traces, t5).targets
    for trace, targets in zip(codex_traces, aligned, strict=True):
        labels = tokens_of(t5, targets)
        ends = np.cumsum([len(label.strip("▁")) for label in labels]).tolist()
        positions = dict(zip([0, *ends], range(len(labels)), strict=False))
        probs, topk_probs = np.exp(trace.token_logprobs), np.exp(trace.topk_logprobs)
        done, is_word = 0, True
        for step, piece in enumerate(trace.token_bytes):
            t = positions.get(done)
            if piece.strip() and t is not None and targets.rule[t] <= Rule.SAME_SPAN:
                others = zip(trace.topk_bytes[step], topk_probs[step], strict=True)
                sampled = (piece, probs[step])
                asked = (labels[t], sampled, list(others), is_word)
                expected, found = expected_slots(t5, *asked), candidates(t5, targets, t)
                total = sum(expected.values())
                assert sum(found.values()) == pytest.approx(total, abs=1e-3)
                assert found[labels[t]] == pytest.approx(expected[labels[t]], abs=2e-5)
                if len(set(expected.values())) == len(expected):  # no ties to break
                    assert found == pytest.approx(expected, abs=2e-4)
                compared += 1
            done += len(b"".join(piece.split()))
            is_word = not piece.strip()
    assert compared > 800


def spans_without_spaces(pieces):
    """Each piece's [start, end) in the text without its whitespace."""
    ends = np.cumsum([0, *[len("".join(piece.split())) for piece in pieces]]).tolist()
    return list(zip(ends[:-1], ends[1:], strict=True))


def test_rules_and_chains_equal_a_token_by_token_oracle(rationales, gpt2, t5):
    """Oracle: both token lists laid over the text without spaces, in plain loops."""
    texts = [text for text in rationales[:100] if text.isascii()]
    compared = 0
    for trace, text in zip(gpt2_traces(texts, gpt2, [b"\xff"]), texts, strict=True):
        targets = align(trace, t5)
        labels = [label.replace("▁", " ") for label in tokens_of(t5, targets)]
        pieces, probs = trace.token_bytes, np.exp(trace.token_logprobs)
        spans = spans_without_spaces([piece.decode() for piece in pieces])
        rows = zip(spans, pieces, probs, strict=True)
        teacher = [(*span, *row) for span, *row in rows if span[0] < span[1]]
        for t, (start, end) in enumerate(spans_without_spaces(labels)):
            if start == end or labels[t - 1] == " ":
                continue  # bare marks have a test of their own
            touched = [row for row in teacher if row[0] < end and row[1] > start]
            first, last, piece, _ = touched[0]
            expected, prob = Rule.INSIDE, 1.0
            if first == start:
                prob = float(np.prod([row[3] for row in touched]))
                expected = Rule.STARTS_TOGETHER
                if last == end:
                    is_equal = piece.decode() == labels[t]
                    expected = Rule.IDENTICAL if is_equal else Rule.SAME_SPAN
            assert targets.rule[t] == expected, (text, t)
            assert targets.topk_probs[t, 0] == pytest.approx(prob, abs=1e-6)
            compared += 1
    assert compared > 5000


# Bad input ----------------------------------------------------------------------------


def bad_traces():
    good = steps({"May": 0.5})
    return {
        "": good,
        "empty": steps({" ": 0.5}),
        "not_spelled": dataclasses.replace(good, text="May."),
        "bad_probabilities": dataclasses.replace(good, topk_logprobs=np.array([[0.1]])),
        "control_token": steps({"May</s>": 0.5}),
    }


def test_bad_traces_are_dropped_and_counted_and_one_alone_is_an_error(t5):
    traces = bad_traces()
    nan = dataclasses.replace(traces[""], token_logprobs=np.array([np.nan]))
    surrogate = dataclasses.replace(traces[""], text="\ud800")
    given = [*traces.values(), nan, surrogate]
    alignment = align_all(given, t5)
    assert alignment.reasons == [*traces, "bad_probabilities", "not_spelled"]
    assert [t is None for t in alignment.targets] == [False, *[True] * 6]
    twice = {"bad_probabilities": 2, "not_spelled": 2}
    assert alignment.drops() == dict.fromkeys(alignment.drops(), 1) | twice
    for trace, reason in zip(given, alignment.reasons, strict=True):
        if reason:
            with pytest.raises(ValueError, match=reason):
                align(trace, t5)


def test_where_bytes_spell_all_the_unknown_token_is_a_control_token_too(gpt2):
    assert gpt2.unk_token == "<|endoftext|>"
    given = [steps({"a <|endoftext|> b": 0.5})]
    assert align_all(given, gpt2).reasons == ["control_token"]


def test_a_text_without_student_tokens_is_empty_and_no_text_is_no_error(t5):
    for method in ("offsets", "dtw"):
        assert align_all([steps({"\x01": 0.5})], t5, method=method).reasons == ["empty"]
        assert align_all([], t5, method=method).targets == []


def test_padding_and_truncation_set_by_others_do_not_matter(folding_unigram):
    trace = steps({"Anna": 0.5}, {" has": 0.5})
    expected = align(trace, folding_unigram).student_ids.tolist()
    folding_unigram(["a", "b b"], padding="max_length", max_length=1, truncation=True)
    assert align(trace, folding_unigram).student_ids.tolist() == expected
    ids = folding_unigram("Anna has", add_special_tokens=False).input_ids
    assert ids == expected


def test_unknown_method_and_slow_tokenizer_are_errors(t5):
    trace = bad_traces()[""]
    with pytest.raises(ValueError, match="method: 'nearest'. Allowed: offsets, dtw"):
        align(trace, t5, method="nearest")
    with pytest.raises(ValueError, match="student_tokenizer: object. Allowed: a fast"):
        align(trace, object())


def test_fields_of_different_lengths_are_an_error():
    with pytest.raises(ValueError, match=r"1 token_bytes, .*, topk_bytes \[\]"):
        dataclasses.replace(bad_traces()[""], topk_bytes=())
    with pytest.raises(ValueError, match=r"topk_logprobs \(1, 1\), topk_bytes \[2\]"):
        dataclasses.replace(bad_traces()[""], topk_bytes=((b"a", b"b"),))


# Reading traces -----------------------------------------------------------------------


def test_a_row_with_fewer_alternatives_is_padded(t5):
    row = {
        "completion": "May in",
        "token_bytes": [b"May", b" in"],
        "token_logprobs": [np.log(0.5), np.log(0.25)],
        "topk_bytes": [[b"May", b"June"], [b" in"]],
        "topk_logprobs": [[np.log(0.5), np.log(0.4)], [np.log(0.25)]],
    }
    targets = align(TeacherTrace.from_row(row), t5)
    assert targets.topk_ids.shape == (2, 2)
    assert candidates(t5, targets, 0) == {"▁May": 0.5, "▁June": 0.4}
    assert candidates(t5, targets, 1) == {"▁in": 0.25}


def test_a_last_token_that_was_cut_is_cut_among_its_alternatives_too(t5):
    sampled = log(0.85)  # ".\n\n", of which the solution keeps the point
    row = {
        "completion": "May.",
        "token_bytes": [b"May", b"."],
        "token_logprobs": [0.0, sampled],
        "topk_bytes": [[b"May"], [b".\n\n", b".", b"!"]],
        "topk_logprobs": [[0.0], [sampled, log(0.08), log(0.05)]],
    }
    targets = align(TeacherTrace.from_row(row), t5)
    assert candidates(t5, targets, 1) == pytest.approx({".": 0.85, "!": 0.05})


def test_partial_characters_of_token_strings_are_bytes():
    assert token_bytes("bytes: 5") == b"bytes: 5"  # a text that only begins so
    rows = [("bytes: \\\\xc3", 0.5), ("/", 0.5)], [("bytes:\\xa9", 1.0), ("a", 0.0)]
    trace = TeacherTrace.from_token_strings(rows)
    assert trace.text == " é"
    assert trace.token_bytes == (b" \xc3", b"\xa9")


# Token bytes --------------------------------------------------------------------------


def test_byte_level_tokens_join_to_the_text_and_special_ones_are_their_own(gpt2):
    text = "".join(map(chr, range(1, 256))) + "naïve – 5 € 🙂\n\n  x<|endoftext|>"
    assert b"".join(spelled(gpt2, gpt2(text)["input_ids"])) == text.encode()


def test_sentencepiece_tokens_join_to_the_text_behind_one_space(t5):
    ids = t5("If 3 cats run", add_special_tokens=False)["input_ids"]
    assert b"".join(spelled(t5, ids)) == b" If 3 cats run"
