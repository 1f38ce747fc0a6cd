"""Which weights are kept, in words and in best.json."""

import math

import pytest

from klimb import KlimbError
from klimb.training.evaluate.best import BestSoFar, Evaluated
from klimb.training.evaluate.estimates import Estimate, compare, mean, points_along
from klimb.training.storage.folder import RunFolder

START = Evaluated(0, Estimate(1.0, 0.25))
HIGHEST = Evaluated(10, Estimate(2.0, 0.25), Estimate(1.0, 0.5))
LAST = Evaluated(20, Estimate(1.5, 0.25), Estimate(-0.5, 0.125))


def test_the_highest_is_named_with_what_came_after_it():
    best = BestSoFar("judges/careful.py:f", 10, (START, HIGHEST, LAST), was_stopped=True)
    assert best.sentences(100) == [
        "The weights after 10 of 20 steps are kept: there the judge careful.py:f was highest, 2.000 ± 0.250.",
        "The last weights differ from those by -0.500 ± 0.125, each prompt with itself.",
        "The run stopped after 20 of 100 steps: 1 evaluation in a row brought nothing better.",
    ]


def test_a_start_that_nothing_beat_is_said_plainly():
    best = BestSoFar("reward", 0, (START, Evaluated(10, Estimate(0.5, 0.1), Estimate(-0.5, 0.2))))
    assert best.sentences(10)[0] == (
        "Nothing was better than the start by the reward, 1.000 ± 0.250: "
        "the weights are kept as they were before training."
    )


@pytest.mark.parametrize(
    ("step", "num_since"),
    [(0, 2), (10, 1), (20, 0)],
)
def test_what_was_no_better_since_is_counted(step, num_since):
    assert BestSoFar("reward", step, (START, HIGHEST, LAST)).num_since == num_since


def test_a_choice_survives_json(tmp_path):
    without_interval = Evaluated(20, Estimate(0.5, math.nan), Estimate(math.nan, math.nan))
    best = BestSoFar("reward", 10, (START, HIGHEST, without_interval), was_stopped=True)
    folder = RunFolder(tmp_path)
    assert folder.read_best() is None
    folder.write_best(best)
    found = folder.read_best()
    assert found is not None
    assert str(found) == str(best)  # NaN is not equal to itself


def test_a_file_that_is_no_choice_is_named(tmp_path):
    (tmp_path / "best.json").write_text('{"step": 1}')
    with pytest.raises(KlimbError, match=r"best\.json: damaged or edited: KeyError"):
        RunFolder(tmp_path).read_best()


def row(when, prompt_index, reward, judge, step=0):
    return {
        "when": when,
        "step": step,
        "prompt_index": prompt_index,
        "reward": reward,
        "rewards": {"judge": judge},
        "kl": float(step),
    }


BEFORE = [row("before", 0, 1.0, 1.0), row("before", 0, 3.0, None), row("before", 1, 4.0, None)]
LATER = [
    row("step-000005", 0, 1.0, 5.0, 5),
    row("step-000005", 0, 1.0, 3.0, 5),
    row("step-000005", 1, 2.0, 9.0, 5),
]


def test_means_and_differences_are_over_the_prompts_with_an_opinion():
    # Prompts' means: reward 2, 4, then 1, 2; the judge 1, none, then 4, 9.
    assert mean(BEFORE, "reward").mean == 3.0
    assert mean(BEFORE, "judge").mean == 1.0
    assert mean(LATER, "judge").mean == 6.5
    assert compare(BEFORE, LATER, "reward").gain.mean == -1.5
    assert compare(BEFORE, LATER, "judge").gain.mean == 3.0
    assert math.isnan(mean([row("before", 0, 1.0, None)], "judge").mean)


def test_the_points_along_a_run_are_its_whole_evaluations():
    points = points_along([*BEFORE, *LATER, *[r | {"when": "after"} for r in LATER]], ["judge"])
    assert [(point.step, point.kl.mean, point.means["judge"].mean) for point in points] == [
        (0, 0.0, 1.0),
        (5, 5.0, 6.5),
    ]
    assert [point.step for point in points_along([*BEFORE, *LATER, row("step-000010", 0, 1.0, 1.0, 10)])] == [
        0,
        5,
    ]
    assert points_along([*BEFORE, *[r | {"when": "after"} for r in LATER]]) == []
