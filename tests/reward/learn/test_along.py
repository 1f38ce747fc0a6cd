"""What raters are told of a reward that is learned while they judge."""

import time
from dataclasses import replace

import numpy as np
import pytest

from klimb.feedback.comparison import Comparison
from klimb.feedback.pairs import Pairs
from klimb.feedback.store.store import Store
from klimb.reward.learn.along import AlongsideReward, words_of
from klimb.reward.learn.evaluation import evaluate


def found(accuracy, low, high, count=40):
    pairs = Pairs(
        ["p", "p", "q", "q"], list("abcd"), np.array([0, 2]), np.array([1, 3]), np.array([1.0, -1.0])
    )
    measured = evaluate(np.array([1.0, 0.0, 1.0, 0.0]), pairs)
    return replace(measured, num_clear=count, accuracy=accuracy, accuracy_low=low, accuracy_high=high)


def test_words_say_whether_it_is_enough_and_how_many_more_may_be():
    assert words_of(found(0.68, 0.55, 0.80)) == (
        "A reward learned from 40 answers agrees with people on 0.68 of held-out pairs (0.55 to 0.80): better than "
        "chance. It is enough to train on; more answers make it better."
    )
    # n = 1.96² · 0.6 · 0.4 / 0.1² = 92.2
    assert words_of(found(0.60, 0.45, 0.75)).endswith(
        "not better than chance yet; about 93 answers may be enough."
    )
    assert words_of(found(0.48, 0.33, 0.63)).endswith("(0.33 to 0.63): not better than chance yet.")


def comparisons(count):
    """Of each pair the one with the letter z is preferred."""
    return [
        Comparison(f"p{number}", "zz yes" if number % 2 else "no", "no" if number % 2 else "zz yes",
                   "left" if number % 2 else "right", "ann")
        for number in range(count)
    ]  # fmt: skip


def wait_for(words, past=""):
    for _ in range(1200):
        if words() not in ("", past):
            return words()
        time.sleep(0.05)
    raise AssertionError("nothing was said within a minute")


def test_it_learns_again_as_more_is_said(tmp_path, model_folder, monkeypatch):
    monkeypatch.setattr("klimb.reward.learn.along._POLL", 0.02)
    with Store.open(tmp_path / "store.db") as store:
        store.add_comparisons(comparisons(9))
        with AlongsideReward(store, str(model_folder)) as along:
            time.sleep(0.3)
            assert along.words == ""  # of so few nothing is said
            store.add_comparisons(comparisons(24))
            first = wait_for(lambda: along.words)
            assert "from 24 answers agrees with people on 1.00" in first
            assert "better than chance" in first
            store.add_comparisons(comparisons(40))
            assert "from 40 answers" in wait_for(lambda: along.words, past=first)


@pytest.mark.parametrize("said", ["ties", "one prompt"])
def test_of_what_teaches_nothing_nothing_is_said(tmp_path, model_folder, monkeypatch, said):
    monkeypatch.setattr("klimb.reward.learn.along._POLL", 0.02)
    rows = comparisons(12)
    if said == "ties":
        rows = [replace(row, preferred="tie") for row in rows]
    else:
        rows = [replace(row, prompt="p", left=f"{row.left}{n}") for n, row in enumerate(rows)]
    with Store.open(tmp_path / "store.db") as store:
        store.add_comparisons(rows)
        with AlongsideReward(store, str(model_folder)) as along:
            time.sleep(3)
            assert along.words == ""


def test_a_text_that_is_too_long_costs_its_own_pair_alone(tmp_path, model_folder, monkeypatch):
    monkeypatch.setattr("klimb.reward.learn.along._POLL", 0.02)
    rows = comparisons(24)
    rows[3] = replace(rows[3], left="long " * 100)
    with Store.open(tmp_path / "store.db") as store:
        store.add_comparisons(rows)
        with AlongsideReward(store, str(model_folder)) as along:
            assert "from 23 answers" in wait_for(lambda: along.words)


def test_an_error_of_a_library_ends_the_learning_and_not_the_page(tmp_path, model_folder, monkeypatch):
    def fail(*_arguments, **_options):
        raise RuntimeError("no memory")

    monkeypatch.setattr("klimb.reward.learn.along._POLL", 0.02)
    monkeypatch.setattr("klimb.reward.learn.along.cross_scores", fail)
    with Store.open(tmp_path / "store.db") as store:
        store.add_comparisons(comparisons(24))
        with AlongsideReward(store, str(model_folder)) as along:
            along._thread.join(30)
            assert not along._thread.is_alive()
            assert along.words == ""


def test_a_base_that_no_reward_is_made_from_says_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("klimb.reward.learn.along._POLL", 0.02)
    with Store.open(tmp_path / "store.db") as store:
        store.add_comparisons(comparisons(12))
        with AlongsideReward(store, str(tmp_path / "nothing")) as along:
            along._thread.join(30)
            assert not along._thread.is_alive()
            assert along.words == ""
