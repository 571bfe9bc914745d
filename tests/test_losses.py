"""The losses against formulas written out here, dense torch functions, and TRL."""

import math
import typing

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cotspec import losses
from cotspec.profiles import Divergence, Tail

DIVERGENCES, TAILS = map(typing.get_args, (Divergence, Tail))
LOG_Q = torch.log(torch.tensor([0.5, 0.2, 0.2, 0.1], dtype=torch.float64))


def one_position(probs_by_id, logits=LOG_Q):
    """One target token: logits (1, 1, V), label 0 and the candidates given."""
    ids, probs = zip(*probs_by_id.items(), strict=True)
    as_batch = {"teacher_ids": torch.tensor([[ids]])}
    as_batch["teacher_probs"] = torch.tensor([[probs]], dtype=torch.float64)
    labels = torch.zeros(1, 1, dtype=torch.long)
    return {"logits": logits.reshape(1, 1, -1), "labels": labels, **as_batch}


def random_batch(seed=0, shape=(2, 3), vocabulary=11, k=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(*shape, vocabulary, generator=generator, dtype=dtype)
    teacher = torch.randn(*shape, vocabulary, generator=generator, dtype=dtype)
    probs, ids = teacher.softmax(-1).topk(k)
    return {
        "logits": logits,
        "labels": torch.randint(0, vocabulary, shape, generator=generator),
        "teacher_ids": ids,
        "teacher_probs": probs,
    }, teacher


@pytest.fixture
def batch():
    """Six positions with four of eleven tokens known; see `random_batch`."""
    return random_batch()[0]


def loss_of(candidates, logits=LOG_Q, **options):
    """Nats of one position under a student, by default one of ``exp(LOG_Q)``."""
    batch = one_position(candidates, logits)
    return losses.distribution_matching(**batch, **options).item()


def divergence_of(*outcomes):
    """KL of outcomes ``(p, q)``, written out."""
    return sum(p * math.log(p / q) for p, q in outcomes)


def dense_kl(batch, teacher):
    """KL of all V tokens per position, torch's own."""
    log_q, p = batch["logits"].log_softmax(-1), teacher.softmax(-1)
    return F.kl_div(log_q, p, reduction="sum") / batch["labels"].numel()


REVERSE, JENSEN = {"divergence": "reverse_kl"}, {"divergence": "jensen_shannon"}
# Of Jensen and Shannon: half of what each side has to the middle of both.
MIDDLES = [(0.6, 0.55), (0.1, 0.15), (0.3, 0.3), (0.5, 0.55), (0.2, 0.15), (0.3, 0.3)]
RESOLUTION = torch.finfo(torch.float32).eps


@pytest.mark.parametrize(
    ("options", "candidates", "outcomes"),
    [
        ({}, {0: 0.6, 2: 0.1}, [(0.6, 0.5), (0.1, 0.2), (0.3, 0.2 + 0.1)]),
        ({"tail": "renormalized"}, {0: 0.6, 2: 0.2}, [(0.75, 0.5), (0.25, 0.2)]),
        ({"tail": "paper"}, {0: 0.6, 2: 0.2}, [(0.6, 0.5), (0.2, 0.2)]),
        (REVERSE, {0: 0.6, 2: 0.1}, [(0.5, 0.6), (0.2, 0.1), (0.3, 0.3)]),
        (JENSEN, {0: 0.6, 2: 0.1}, [(p / 2, q / 2) for p, q in MIDDLES]),
        (REVERSE, {0: 0.75, 1: 0.25}, [(0.5, 0.75), (0.2, 0.25), (0.3, RESOLUTION)]),
        # Answer-only positions use cross-entropy under every divergence.
        *(({"divergence": d}, {0: 1.0, 1: 0.0}, [(1, 0.5)]) for d in DIVERGENCES),
    ],
)
def test_the_tail_and_the_direction_by_hand(options, candidates, outcomes):
    """The bucket counts the tail as one more outcome; the other two ignore it."""
    by_hand = divergence_of(*outcomes)
    assert loss_of(candidates, **options) == pytest.approx(by_hand, abs=1e-12)


def test_paper_does_not_saturate_where_the_student_is_sure_of_another_token():
    logits = torch.tensor([200.0, 0.0, 0.0, 0.0])
    loss = loss_of({1: 1.0}, logits, tail="paper")
    assert loss == pytest.approx(200.0)  # -log(1e-10) would be 23


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_bucket_is_zero_with_zero_gradient_where_student_is_teacher(batch, divergence):
    logits = batch["logits"].requires_grad_()
    probs, ids = logits.detach().softmax(-1).topk(4)
    batch |= {"teacher_ids": ids, "teacher_probs": probs}
    loss = losses.distribution_matching(**batch, divergence=divergence)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    assert logits.grad.abs().max() < 1e-12


@pytest.mark.parametrize("tail", ("renormalized", "paper"))
def test_other_tails_push_away_from_a_student_that_equals_the_teacher(tail):
    logits = LOG_Q.clone().requires_grad_()
    batch = one_position({0: 0.5, 1: 0.2}, logits)
    losses.distribution_matching(**batch, tail=tail).backward()
    assert logits.grad[0] < -0.1 and logits.grad[3] > 0.05


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_with_all_tokens_as_candidates_it_is_the_dense_kl(tail, dtype):
    batch, teacher = random_batch(k=11, dtype=dtype)
    loss = losses.distribution_matching(**batch, tail=tail)
    torch.testing.assert_close(loss, dense_kl(batch, teacher), rtol=1e-5, atol=1e-6)


def test_bucket_is_a_lower_bound_of_the_dense_kl_that_grows_with_k():
    values = []
    for k in range(1, 12):
        batch, teacher = random_batch(k=k)
        values.append(losses.distribution_matching(**batch).item())
    assert values == sorted(values)
    assert values[4] < values[-1] == pytest.approx(dense_kl(batch, teacher).item())


@pytest.mark.parametrize("tail", TAILS)
def test_one_hot_teacher_equals_cross_entropy_in_value_and_gradient(batch, tail):
    batch["teacher_ids"] = F.pad(batch["labels"].unsqueeze(-1), (0, 3))
    batch["teacher_probs"] = torch.eye(4, dtype=torch.float64)[0].expand(2, 3, 4)
    logits = batch["logits"].requires_grad_()
    matching = losses.distribution_matching(**batch, tail=tail)
    (gradient,) = torch.autograd.grad(matching, logits)
    cross_entropy = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
    (expected,) = torch.autograd.grad(cross_entropy, logits)
    torch.testing.assert_close(matching, cross_entropy)
    torch.testing.assert_close(gradient, expected)


def test_cross_entropy_is_mixed_in_by_its_weight(batch):
    matching = losses.distribution_matching(**batch)
    sample = losses.sample_matching(batch["logits"], batch["labels"])
    mixed = losses.distribution_matching(**batch, cross_entropy_weight=0.25)
    torch.testing.assert_close(mixed, 0.75 * matching + 0.25 * sample)


MIXED = JENSEN | {"cross_entropy_weight": 0.3}


@pytest.mark.parametrize("options", [*({"tail": t} for t in TAILS), REVERSE, MIXED])
@pytest.mark.parametrize("k", (1, 4, 11))
def test_gradients_in_float64(options, k):
    batch, _ = random_batch(k=k)
    batch["labels"][0, 1] = -100
    batch["teacher_probs"][1, 1, 1:] = 0.0
    batch["teacher_ids"][1, 1, 1:] = 0
    logits = batch.pop("logits").requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: losses.distribution_matching(z, **batch, **options), (logits,)
    )


def test_blocks_do_not_change_the_result(batch, monkeypatch):
    batch["logits"].requires_grad_()
    whole = losses.distribution_matching(**batch)
    (expected,) = torch.autograd.grad(whole, batch["logits"])
    monkeypatch.setattr(losses, "_BLOCK_ELEMENTS", 22)  # two rows at a time
    blocks = losses.distribution_matching(**batch)
    (gradient,) = torch.autograd.grad(blocks, batch["logits"])
    torch.testing.assert_close(gradient, expected)


def test_masked_positions_get_no_gradient_and_do_not_count_even_if_not_finite(batch):
    batch["labels"][:, 2] = -100
    kept = {name: value[:, :2] for name, value in batch.items()}
    batch["logits"][:, 2] = math.nan
    logits = batch["logits"].requires_grad_()
    loss = losses.distribution_matching(**batch)
    loss.backward()
    torch.testing.assert_close(loss, losses.distribution_matching(**kept))
    assert torch.equal(logits.grad[:, 2], torch.zeros(2, 11, dtype=torch.float64))


def test_sample_matching_is_the_mean_over_unmasked_tokens_of_the_whole_batch():
    logits = LOG_Q.expand(2, 2, 4)
    labels = torch.tensor([[0, 3], [1, -100]])
    by_hand = -(math.log(0.5) + math.log(0.1) + math.log(0.2)) / 3
    assert losses.sample_matching(logits, labels).item() == pytest.approx(by_hand)


def test_a_batch_without_targets_costs_nothing(batch):
    batch["labels"][:] = -100
    logits = batch["logits"].requires_grad_()
    losses.distribution_matching(**batch).backward()
    assert losses.sample_matching(logits, batch["labels"]).item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_probabilities_of_colliding_candidates_add():
    twice = one_position({0: 0.4, 2: 0.1, 3: 0.2})
    twice["teacher_ids"][..., 2] = 0
    loss = losses.distribution_matching(**twice).item()
    assert loss == pytest.approx(loss_of({0: 0.6, 2: 0.1}), abs=1e-12)


def test_empty_slots_change_nothing_even_where_token_0_is_a_candidate():
    for candidates in ({0: 0.6, 2: 0.1}, {1: 0.6, 2: 0.1}):
        batch = one_position(candidates)
        for name, empty in (("teacher_ids", -1), ("teacher_probs", 0.0)):
            batch[name] = F.pad(batch[name], (0, 2), value=empty)
        loss = losses.distribution_matching(**batch).item()
        assert loss == pytest.approx(loss_of(candidates), abs=1e-12)


def test_the_tail_keeps_its_precision_when_the_student_is_almost_certain():
    logits = torch.tensor([40.0, 0.0, 0.0, 0.0], requires_grad=True)
    loss = losses.distribution_matching(**one_position({0: 0.9}, logits))
    loss.backward()
    rest = math.log(3) - 40  # log of the student's tail; 1 - q is 0 in float32
    by_hand = 0.9 * math.log(0.9) + 0.1 * (math.log(0.1) - rest)
    assert loss.item() == pytest.approx(by_hand, rel=1e-6)
    assert logits.grad.tolist() == pytest.approx([0.1, -0.1 / 3, -0.1 / 3, -0.1 / 3])


def test_bfloat16_logits_are_worked_on_in_float32():
    batch, _ = random_batch(dtype=torch.float32)
    coarse = batch["logits"].bfloat16()
    for computed in (
        lambda z: losses.sample_matching(z, batch["labels"]),
        lambda z: losses.distribution_matching(**batch | {"logits": z}),
    ):
        loss = computed(coarse)
        assert loss.dtype == torch.float32
        assert torch.equal(loss, computed(coarse.float()))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 11))
def test_bucket_is_never_negative_and_finite(seed, k):
    batch, _ = random_batch(seed, k=k, dtype=torch.float32)
    batch["logits"] = 20 * batch["logits"]
    for divergence in DIVERGENCES:
        loss = losses.distribution_matching(**batch, divergence=divergence)
        assert math.isfinite(loss) and loss > -1e-5


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_trl_generalised_jensen_shannon_agrees(divergence):
    gkd = pytest.importorskip("trl.experimental.gkd")
    batch, teacher = random_batch(k=11)
    batch["labels"][0, 0] = -100
    beta = {"forward_kl": 0.0, "reverse_kl": 1.0, "jensen_shannon": 0.5}[divergence]
    expected = gkd.GKDTrainer.generalized_jsd_loss(
        batch["logits"], teacher, labels=batch["labels"], beta=beta
    )
    loss = losses.distribution_matching(**batch, divergence=divergence)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tail": "none"}, "tail\n.*'bucket', 'renormalized' or 'paper'.*'none'"),
        ({"divergence": "tv"}, "divergence\n.*'forward_kl', .*'tv'"),
        ({"divergence": "reverse_kl", "tail": "paper"}, "tail 'paper' with"),
        ({"cross_entropy_weight": 2.0}, "cross_entropy_weight\n.*less than.*2.0"),
        ({"labels": torch.zeros(1, 3, dtype=torch.long)}, r"shapes .*\(1, 3\)"),
        ({"teacher_probs": torch.zeros(1, 1, 7)}, r"shapes .*\(1, 1, 7\)"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    batch = one_position({0: 0.6, 2: 0.1}) | change
    with pytest.raises(ValueError, match=message):
        losses.distribution_matching(**batch)
