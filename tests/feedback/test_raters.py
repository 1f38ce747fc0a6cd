"""What raters' answers say about them: by hand, and how often fair and unfair raters are flagged, by simulation."""

import itertools

import numpy as np
import pytest

from klimb.feedback.comparison import Comparison
from klimb.feedback.rater_report import Opinion, Share
from klimb.feedback.raters import LIMITS, Limits, account_for, opinions_in

PROMPTS, COMPLETIONS = 10, 4  # 60 pairs
NUM_RUNS = 150


def pairs():
    for prompt in range(PROMPTS):
        for one, other in itertools.combinations(range(COMPLETIONS), 2):
            yield f"p{prompt}", f"a{one}", f"a{other}"


def judge(rng, rater, says):
    """Judge all pairs, sides drawn at random; `says` takes whether the better one is left."""
    said = []
    for prompt, one, other in pairs():
        first, second = (one, other) if rng.random() < 0.5 else (other, one)
        is_first_left = rng.random() < 0.5
        is_left_better = (first < second) == is_first_left
        is_first = says(is_left_better) == is_first_left
        said.append(
            Opinion(
                rater,
                prompt,
                first,
                second,
                "first" if is_first else "second",
                "first" if is_first_left else "second",
                float(rng.lognormal(1.5, 0.6)),
            )
        )
    return said


def fair(rng, errors=0.15):
    return lambda is_left_better: is_left_better != (rng.random() < errors)


def coin(rng):
    return lambda _: rng.random() < 0.5


def flags_of(report, rater):
    (account,) = [one for one in report.accounts if one.rater == rater]
    return set(account.flags)


def opinion(prompt, first, second, preferred, rater="ann", **more):
    return Opinion(rater, prompt, first, second, preferred, **more)


def test_an_account_by_hand():
    said = [
        opinion("p", "a", "b", "first", shown_left="first", seconds=1.0),
        opinion("p", "c", "b", "second", shown_left="first", seconds=4.0),
        opinion("p", "c", "a", "first", seconds=9.0),  # a > b > c > a
        opinion("p", "b", "a", "second"),  # the first again, the other way round
        opinion("p", "b", "c", "second"),  # against the second; now c is above a and b: no circle is left
        opinion("q", "a", "b", "tie"),
        opinion("q", "a", "c", "both_bad"),
        opinion("q", "b", "c", "skip"),
        opinion("p", "a", "b", "first", "bob"),
        opinion("p", "b", "c", "first", "bob"),
        opinion("q", "a", "b", "first", "bob"),  # ann has no preference here
    ]
    ann, bob = account_for(said).accounts
    assert (ann.rater, ann.num_judgements, ann.num_ties, ann.num_skipped) == ("ann", 8, 2, 1)
    assert ann.left == Share(1, 2)
    assert ann.repeats == Share(1, 2)
    assert ann.circles == Share(0, 1)
    assert ann.agreement == bob.agreement == Share(1, 2)
    assert (ann.median_seconds, bob.median_seconds) == (4.0, None)
    assert account_for(said[:3]).accounts[0].circles == Share(1, 1)


def test_two_others_of_a_pair_are_averaged():
    said = [
        opinion("p", "a", "b", side, rater)
        for rater, side in (("x", "first"), ("y", "first"), ("z", "second"))
    ]
    shares = {account.rater: account.agreement for account in account_for(said).accounts}
    assert shares == {"x": Share(0.5, 1), "y": Share(0.5, 1), "z": Share(0, 1)}


def test_answers_whose_rater_is_not_known_are_not_taken_for_one_rater():
    said = [
        opinion("p", "a", "b", side, "", shown_left="first", seconds=0.1) for side in ("first", "second") * 40
    ]
    (account,) = account_for(said).accounts
    assert (account.repeats, account.agreement, account.flags) == (Share(), Share(), ())


def test_of_nothing_there_is_nothing_to_say():
    report = account_for([])
    assert (report.accounts, report.warnings, report.lines) == ([], [], [])


def test_comparisons_count_as_what_was_said_where_it_was_shown():
    rows = [
        Comparison("p", "a", "b", "right", "ann", shown_left="right", seconds=2.0),
        Comparison("p", "a", "c", "tie"),
    ]
    assert opinions_in(rows) == [
        Opinion("ann", "p", "a", "b", "second", "second", 2.0),
        Opinion("", "p", "a", "c", "tie", "", None),
    ]


def test_the_limits_follow_from_the_errors_of_a_fair_rater():
    # ε = 1/4: the same again in 1 − 2 · 1/4 · 3/4 = 5/8, straight in 1 − 3/16.
    assert Limits(most_errors=0.25).fair_agreement == pytest.approx(5 / 8)
    assert Limits(most_errors=0.25).fair_straight == pytest.approx(13 / 16)
    rng = np.random.default_rng(3)
    said = [
        account_for(judge(rng, "ann", fair(rng, LIMITS.most_errors))).accounts[0].circles for _ in range(100)
    ]
    circular = sum(share.count for share in said) / sum(share.total for share in said)
    assert circular == pytest.approx(1 - LIMITS.fair_straight, abs=0.012)


def shared_store(rng, third):
    return account_for(
        [*judge(rng, "ann", fair(rng)), *judge(rng, "bob", fair(rng)), *judge(rng, "eve", third(rng))]
    )


def test_a_fair_rater_is_hardly_ever_flagged():
    rng = np.random.default_rng(0)
    flags = [flag for _ in range(NUM_RUNS) for one in shared_store(rng, fair).accounts for flag in one.flags]
    most = 0.02 * 3 * NUM_RUNS
    assert all(flags.count(flag) < most for flag in set(flags)), flags
    assert len(flags) < most


def test_fair_raters_beside_a_coin_are_hardly_ever_taken_for_it():
    rng = np.random.default_rng(1)
    reports = [shared_store(rng, coin) for _ in range(NUM_RUNS)]
    wrong = sum(bool(flags_of(report, rater)) for report in reports for rater in ("ann", "bob"))
    assert wrong < 0.02 * 2 * NUM_RUNS
    assert np.mean(["agreement" in flags_of(report, "eve") for report in reports]) > 0.5
    assert np.mean([bool(flags_of(report, "eve")) for report in reports]) > 0.6


def test_looking_after_each_answer_flags_hardly_more_fair_raters():
    rng = np.random.default_rng(2)
    flagged = 0
    for _ in range(60):
        said = judge(rng, "ann", fair(rng))
        flagged += any(account_for(said[:count]).suspects for count in range(20, 61, 2))
    assert flagged <= 1


@pytest.mark.parametrize("lean", [0.85, 1.0])
def test_who_answers_by_place_is_found_from_the_answers_alone(lean):
    rng = np.random.default_rng(4)
    reports = [account_for(judge(rng, "eve", lambda _: rng.random() < lean)) for _ in range(100)]
    assert np.mean(["place" in flags_of(report, "eve") for report in reports]) > 0.95
    line = account_for(judge(rng, "eve", lambda _: True)).lines[0]
    assert line.startswith("eve prefers answer 1 in 60 of 60 pairs")


def test_who_answers_by_place_is_no_measure_for_others():
    rng = np.random.default_rng(11)
    said = [
        *judge(rng, "ann", fair(rng)),
        *judge(rng, "eve", lambda _: True),
        *judge(rng, "bob", lambda _: False),
    ]
    report = account_for(said)
    shares = {one.rater: one.agreement.total for one in report.accounts}
    assert shares == {"ann": 0, "bob": 60, "eve": 60}
    assert [one.rater for one in report.suspects] == ["bob", "eve"]
    assert report.conflicts == []


def test_the_other_side_is_named_where_it_is_preferred():
    rng = np.random.default_rng(4)
    assert (
        account_for(judge(rng, "eve", lambda _: False))
        .warnings[0]
        .startswith("eve prefers answer 2 in 60 of 60")
    )


def test_a_slight_liking_for_a_side_is_not_flagged_however_many_answers_show_it():
    said = [
        opinion(f"p{number}", "a", "b", "first" if number % 100 < 57 else "second", shown_left="first")
        for number in range(3000)
    ]
    assert account_for(said).suspects == []


def test_who_answers_repeated_pairs_the_other_way_is_found():
    rng = np.random.default_rng(5)
    found, wrong = 0, 0
    for _ in range(100):
        once = judge(rng, "eve", fair(rng))
        against = [opinion(o.prompt, o.second, o.first, o.preferred, "eve") for o in once]
        found += "repeats" in flags_of(account_for([*once, *against]), "eve")
        wrong += bool(account_for([*once, *judge(rng, "eve", fair(rng))]).suspects)
    assert found == 100
    assert wrong <= 2
    tossed = [account_for([*judge(rng, "eve", coin(rng)), *judge(rng, "eve", coin(rng))]) for _ in range(100)]
    assert np.mean([bool(flags_of(report, "eve")) for report in tossed]) > 0.6


def test_who_runs_in_circles_is_found():
    said = [
        opinion(f"p{number}", *pair, "first")
        for number in range(10)
        for pair in (("a", "b"), ("b", "c"), ("c", "a"))
    ]
    report = account_for(said)
    assert flags_of(report, "ann") == {"circles"}
    assert "in 10 of 10 triples" in report.warnings[0]


def test_a_coin_about_pairs_that_nobody_else_judged_leaves_no_trace():
    rng = np.random.default_rng(6)
    said = [
        opinion(f"p{n}", "a", "b", ("first", "second")[rng.integers(2)], shown_left="first")
        for n in range(200)
    ]
    assert account_for(said).suspects == []


def test_two_raters_who_always_disagree_are_told_of_and_neither_is_blamed():
    said = [
        opinion(f"p{n}", "a", "b", side, rater)
        for n in range(8)
        for rater, side in (("x", "first"), ("y", "second"))
    ]
    report = account_for(said)
    assert report.suspects == []
    assert report.warnings[0].startswith("x and y prefer opposite answers: they agree on 0 of 8 pairs")
    assert "--without-raters x" in report.advice


def test_who_says_the_opposite_of_two_others_is_blamed_alone():
    rng = np.random.default_rng(7)
    report = shared_store(rng, lambda rng: lambda is_left_better: is_left_better == (rng.random() < 0.05))
    assert flags_of(report, "eve") == {"opposite"}
    assert [one.rater for one in report.suspects] == ["eve"]
    assert report.conflicts == []


def test_a_coin_beside_one_other_rater_is_a_matter_of_both():
    rng = np.random.default_rng(8)
    reports = [
        account_for(
            [*judge(rng, "ann", fair(rng)), *judge(rng, "eve", coin(rng))],
            Limits(most_errors=0.18),
        )
        for _ in range(100)
    ]
    assert all("agreement" not in one.flags for report in reports for one in report.accounts)
    told = [report for report in reports if report.conflicts]
    assert len(told) > 50
    assert "no better than two coins" in told[0].conflicts[0].sentence


def test_who_agrees_better_than_a_coin_is_not_flagged_however_little_better():
    said = [
        opinion(f"p{number}", "a", "b", side, rater)
        for number in range(1000)
        for rater, side in (("x", "first"), ("y", "first" if number < 590 else "second"))
    ]
    assert account_for(said).warnings == []


def test_too_fast_and_too_undecided_raters_are_flagged_from_twenty_answers_on():
    def said(count):
        return [opinion(f"p{n}", "a", "b", "tie" if n % 2 else "skip", seconds=0.4) for n in range(count)]

    assert account_for(said(19)).suspects == []
    report = account_for(said(20))
    assert flags_of(report, "ann") == {"undecided", "speed"}
    assert any("ann takes 0.4 s per pair (median)" in line for line in report.warnings)
    assert any("preferred neither answer in any of 20 pairs" in line for line in report.warnings)


def test_names_are_quoted_for_the_shell_and_harmless_on_the_terminal():
    rng = np.random.default_rng(9)
    report = account_for(judge(rng, "e v\x1b[31me", lambda _: True))
    assert "\x1b" not in "".join(report.lines)
    assert "--without-raters 'e v" in report.advice


def test_the_account_is_plain_data():
    rng = np.random.default_rng(10)
    found = account_for(judge(rng, "eve", lambda _: True)).as_dict()
    (eve,) = found["raters"]
    assert eve["left"] == {"count": 60, "total": 60}
    assert "place" in eve["flags"]
    assert eve["warnings"][0].startswith("eve prefers answer 1")
