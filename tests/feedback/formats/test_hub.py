"""Data sets of the hub with two answers under names that are alike, and a verdict; rows as their cards show them."""

import json

import pytest

from klimb.feedback.comparison import Comparison


def user(text):
    return {"role": "user", "content": text}


def chat(answer):
    return [user("q"), {"role": "assistant", "content": answer}]


PKU = {
    "prompt": "q",
    "response_0": "a",
    "response_1": "b",
    "is_response_0_safe": False,
    "safer_response_id": 1,
}
HELPSTEER3 = {
    "domain": "code",
    "language": "python",
    "context": [user("q")],
    "response1": "a",
    "response2": "b",
}
ARENA = {
    "question_id": "x",
    "model_a": "m",
    "model_b": "n",
    "conversation_a": chat("a"),
    "conversation_b": chat("b"),
}
KAGGLE = {
    "id": 1,
    "model_a": "m",
    "model_b": "n",
    "prompt": '["q"]',
    "response_a": '["a"]',
    "response_b": '["b"]',
}
WEBGPT = {"question": {"dataset": "eli5", "id": "1", "full_text": "q"}, "answer_0": "a", "answer_1": "b"}
SHP = {"post_id": "x", "history": "q", "human_ref_A": "a", "human_ref_B": "b", "score_A": 3, "score_B": 1}
FARM = {"instruction": "q", "input": "", "output_1": "a", "output_2": "b"}


@pytest.mark.parametrize(
    ("row", "preferred"),
    [
        (PKU | {"better_response_id": 0}, "left"),
        (PKU | {"better_response_id": 1}, "right"),
        (HELPSTEER3 | {"overall_preference": -2}, "left"),
        (HELPSTEER3 | {"overall_preference": 0}, "tie"),
        ({"prompt": "q", "response_1": "a", "response_2": "b", "preference_strength": 3}, "right"),
        (ARENA | {"winner": "model_a"}, "left"),
        (ARENA | {"winner": "model_b"}, "right"),
        (ARENA | {"winner": "tie"}, "tie"),
        (KAGGLE | {"winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0}, "right"),
        (KAGGLE | {"winner_model_a": 0, "winner_model_b": 0, "winner_tie": 1}, "tie"),
        (WEBGPT | {"score_0": 0.5, "score_1": -0.5}, "left"),
        (WEBGPT | {"score_0": 0.0, "score_1": 0.0}, "tie"),
        (SHP | {"labels": 1}, "left"),
        (SHP | {"labels": 0}, "right"),
        (FARM | {"preference": 2}, "right"),
        (FARM | {"preference": "1"}, "left"),
        ({"prompt": "q", "response_a": "a", "response_b": "b", "preference": "B"}, "right"),
        ({"prompt": "q", "response_a": "a", "response_b": "b", "preferred": "response_a"}, "left"),
        ({"prompt": "q", "answer 1": "a", "answer 2": "b", "choice": "Response 2 is better"}, "right"),
        ({"prompt": "q", "left": "a", "right": "b", "preferred": "A"}, "left"),
        ({"prompt": "q", "text1": "a", "text2": "b", "winner": "first"}, "left"),
        ({"prompt": "q", "orig_response_A": "a", "orig_response_B": "b", "orig_preference": "B"}, "right"),
    ],
)  # fmt: skip
def test_who_won(read, row, preferred):
    ((prompt, left, right, said),) = [(c.prompt, c.left, c.right, c.preferred) for c in read(row).comparisons]
    assert (left, right, said) == ("a", "b", preferred)
    assert prompt in ("q", [user("q")])


def test_what_else_such_a_row_says_is_named(read):
    assert set(read(PKU | {"better_response_id": 0}).unread) == {"is_response_0_safe", "safer_response_id"}
    assert set(read(SHP | {"labels": 1}).unread) == {"score_A", "score_B"}
    assert not read(ARENA | {"winner": "tie"}).unread


@pytest.mark.parametrize("winner", ["tie (bothbad)", "both_bad", "bothbad"])
def test_two_bad_answers_are_not_counted_and_that_is_said(read, winner):
    found = read(ARENA | {"winner": winner})
    assert (found.comparisons, found.num_skipped) == ([], 1)
    assert f"not counted: 1 rows with winner '{winner}'" in found.summary


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (FARM | {"preference": 0}, "expected left, right or tie, or the name of a candidate (output_1, output_2)"),
        ({"prompt": "q", "response_a": "a", "response_b": "b", "preference": 1}, "expected left, right or tie"),
        (ARENA | {"winner": "model_c"}, "winner: expected left, right or tie"),
        (HELPSTEER3 | {"overall_preference": -100}, "overall_preference: expected a number from −3 to 3, got -100"),
        (SHP | {"labels": 2}, "labels: expected 1 where human_ref_A is preferred"),
        (KAGGLE | {"winner_model_a": 1, "winner_model_b": 1, "winner_tie": 0}, "expected one of them to be 1"),
        (
            KAGGLE
            | {"prompt": '["q", "r"]', "response_a": '["a", "a"]', "response_b": '["b", "b"]'}
            | {"winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0},
            "has 2 turns, in which the answers before the last differ",
        ),
        (ARENA | {"conversation_b": [user("other"), chat("b")[1]], "winner": "tie"}, "differ before their last turn"),
        ({"prompt": "q", "response_a": "a", "response_b": "b", "verdict_text": "A"}, "it has 'verdict_text'"),
    ],
)  # fmt: skip
def test_a_verdict_that_is_not_clear_is_refused(reason, row, why):
    assert why in reason(row)


def test_the_best_of_several_beats_each_of_the_others(read):
    row = {"prompt": "q", "response_1": "a", "response_2": "b", "response_3": "c", "preferred": "response_2"}
    assert read(row).comparisons == [Comparison("q", "b", "a", "left"), Comparison("q", "b", "c", "left")]


def test_content_in_parts_as_the_arena_has_it(read):
    def parts(text):
        return [{"type": "text", "text": text, "image": None, "mimeType": None}]

    def turns(text):
        return [{"role": "user", "content": parts("q")}, {"role": "assistant", "content": parts(text)}]

    row = {"conversation_a": turns("a"), "conversation_b": turns("b"), "winner": "model_b"}
    assert read(json.loads(json.dumps(row))).comparisons == [Comparison([user("q")], "a", "b", "right")]
