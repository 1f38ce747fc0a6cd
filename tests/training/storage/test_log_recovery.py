"""How far a run's lines are believed."""

import json

import pytest

from klimb.training.storage.log_recovery import EvaluationLines, StepLines


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def steps(*numbers):
    return [{"step": number} for number in numbers]


@pytest.mark.parametrize(
    ("content", "num_steps"),
    [
        ("", 0),
        (lines(*steps(0, 1, 2)), 3),
        (lines(*steps(0, 0, 1, 1)), 2),
        (lines(*steps(0, 1)) + '{"step": 2}', 2),
        (lines(*steps(0, 1)) + '{"ste\n' + lines(*steps(2)), 2),
        (lines(*steps(0, 2)), 1),
        (lines(*steps(0, 1, 0)), 2),
        (lines(*steps(1, 2)), 0),
        (lines(*steps(0)) + "7\n", 1),
        (lines(*steps(0)) + "\x00\x00\x00\n", 1),
    ],
)
def test_lines_are_believed_as_far_as_they_are_whole_and_in_order(content, num_steps, tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text(content)
    assert len(StepLines.scan(file).ends) == num_steps


def test_a_file_that_is_not_there_has_no_steps_and_is_not_made(tmp_path):
    found = StepLines.scan(tmp_path / "metrics.jsonl")
    assert found.ends == []
    found.cut(0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("keep", range(4))
def test_lines_are_cut_after_whole_steps(keep, tmp_path):
    file = tmp_path / "completions.jsonl"
    file.write_text(lines(*steps(0, 0, 1, 1, 2, 2)) + '{"step": 3')
    StepLines.scan(file).cut(keep)
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [
        step for step in range(keep) for _ in range(2)
    ]


def rows(when, step, count=2):
    return [{"when": when, "step": step, "n": number} for number in range(count)]


START = rows("before", 0)


@pytest.mark.parametrize(
    ("found", "along", "has_after"),
    [
        ([*START], [0], False),
        ([*START, *rows("step-000003", 3), *rows("step-000006", 6)], [0, 3, 6], False),
        ([*START, *rows("step-000003", 3, count=1)], [0], False),
        ([*START, *rows("step-000003", 3), *rows("after", 3)], [0, 3], True),
        ([*START, *rows("after", 9, count=1)], [0], False),
        ([*START, *rows("step-000003", 3, count=1), *rows("step-000006", 6)], [0], False),
    ],
)
def test_evaluations_are_believed_as_far_as_they_are_whole(found, along, has_after, tmp_path):
    file = tmp_path / "evaluations.jsonl"
    file.write_text(lines(*found))
    scanned = EvaluationLines.scan(file)
    assert [evaluation.step for evaluation in scanned.along] == along
    assert (scanned.after is not None) == has_after


@pytest.mark.parametrize(("until", "left"), [(0, []), (2, [0]), (3, [0, 3]), (5, [0, 3]), (6, [0, 3, 6])])
def test_evaluations_are_cut_after_a_step_and_what_was_judged_at_the_end_goes(until, left, tmp_path):
    file = tmp_path / "evaluations.jsonl"
    file.write_text(lines(*START, *rows("step-000003", 3), *rows("step-000006", 6), *rows("after", 3)))
    EvaluationLines.scan(file).cut(until)
    kept = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["step"] for row in kept] == [step for step in left for _ in range(2)]
    assert all(row["when"] != "after" for row in kept)
