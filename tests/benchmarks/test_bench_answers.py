"""Scoring: golds parsed, agreement with other scorers, completions per second."""

import json

import scoring_oracles

from cotspec.answers import parse_number, score_bbh, score_math


def test_golds_agreement_and_speed_on_real_texts(benchmark, data_dir):
    for name, golds in scoring_oracles.published_golds(data_dir).items():
        parsed = sum(parse_number(gold) is not None for gold in golds)
        print(f"\n{name}: {parsed:,} of {len(golds):,} golds parsed", end="")
        assert parsed == len(golds)
    total = len(scoring_oracles.real_cases(data_dir))
    benchmark.pedantic(scoring_oracles.our_verdicts.__wrapped__, (data_dir,))
    for scorer in scoring_oracles.SCORERS:
        found = scoring_oracles.disagreements_with(scorer, data_dir)
        different, agreement = found.total(), 1 - found.total() / total
        causes = len({cause for *_, cause in found})
        benchmark.extra_info[f"agreement_{scorer}"] = agreement
        print(f"\n{scorer}: {agreement:.2%} of {total:,} verdicts agree", end="")
        print(f", {different} differ, of {causes} listed causes", end="")
        assert found == scoring_oracles.explained(scorer)
        assert agreement > 0.995
    per_second = total / benchmark.stats.stats.mean
    benchmark.extra_info["completions_per_second"] = per_second
    print(f"\n{per_second:.0f} real completions per second")
    assert per_second > 1_000


def test_math_completions_scored_per_second(benchmark, data_dir):
    lines = (data_dir / "gsm8k" / "test.jsonl").read_text().splitlines()
    golds = [json.loads(line)["answer"].rsplit("#### ", 1) for line in lines]
    pairs = [(f"{chain} The answer is {gold}.", gold) for chain, gold in golds]

    def score_all():
        return sum(
            score_math(completion, gold).is_correct for completion, gold in pairs
        )

    assert benchmark(score_all) == len(pairs)
    per_second = len(pairs) / benchmark.stats.stats.mean
    benchmark.extra_info["completions_per_second"] = per_second
    print(f"\n{per_second:.0f} math completions per second")
    assert per_second > 1_000


def test_bbh_completions_scored_per_second(benchmark, data_dir):
    cases = []
    for path in sorted((data_dir / "bbh" / "tasks").glob("*.json")):
        for item in json.loads(path.read_text())["examples"]:
            sentence = f"We think. So the answer is {item['target']}."
            cases.append((path.stem, sentence, item["target"]))

    def score_all():
        return sum(
            score_bbh(*case, prompt_mode="chain_of_thought").is_correct
            for case in cases
        )

    assert benchmark(score_all) == len(cases)
    per_second = len(cases) / benchmark.stats.stats.mean
    benchmark.extra_info["completions_per_second"] = per_second
    print(f"\n{per_second:.0f} BBH completions per second")
    assert per_second > 1_000
