"""The shipped tokenizers: T5-like, unlike each other."""

from string import ascii_lowercase, ascii_uppercase

from cotspec.micro import tokenizers, world

STUDENT, TEACHER = tokenizers.load_student(), tokenizers.load_teacher()
TEXTS = [
    f"{item['question']} {item['rationale']}"
    for item in world.generate("math", "train", 50, seed=7)
]


def test_numbers_up_to_99_are_single_pieces_the_teachers_after_a_space():
    for number in range(100):
        assert len(STUDENT(str(number), add_special_tokens=False)["input_ids"]) == 1
        assert len(TEACHER(f" {number}")["input_ids"]) == 1


def test_both_round_trip_the_world_and_every_letter():
    for text in (*TEXTS, f"{ascii_lowercase} {ascii_uppercase}"):
        ids = STUDENT(text)["input_ids"]
        assert STUDENT.decode(ids, skip_special_tokens=True) == text
        assert TEACHER.decode(TEACHER(text)["input_ids"]) == text


def test_the_student_is_t5_like():
    ids = STUDENT("Tom has\n\n 3")["input_ids"]
    assert STUDENT.convert_ids_to_tokens(ids) == ["▁Tom", "▁has", "▁3", "</s>"]
    assert STUDENT.pad_token_id == 0 and STUDENT.eos_token_id == 1
    marks = STUDENT.convert_tokens_to_ids(list(tokenizers.SENTINELS))
    assert STUDENT.unk_token_id not in marks and len(set(marks)) == len(marks)


def boundaries(tokenizer, text):
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return {end for _, end in encoded["offset_mapping"]}


def test_some_student_pieces_span_several_teacher_pieces_and_the_reverse():
    extra_student = extra_teacher = 0
    for text in TEXTS:
        ours, theirs = boundaries(STUDENT, text), boundaries(TEACHER, text)
        extra_student += len(ours - theirs)
        extra_teacher += len(theirs - ours)
    assert extra_student > 20 and extra_teacher > 20
