"""Preferences as other trainers, services and data sets of the hub have them."""

import pytest

from klimb.feedback.comparison import Comparison, Rating


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


QUESTION, GOOD, BAD = [user("q")], [assistant("good")], [assistant("bad")]

PREFERENCES = {
    "openai": (
        {
            "input": {"messages": QUESTION, "tools": [], "parallel_tool_calls": True},
            "preferred_output": GOOD,
            "non_preferred_output": BAD,
        },
        QUESTION,
    ),
    "ms-swift": ({"messages": [*QUESTION, *GOOD], "rejected_response": "bad"}, QUESTION),
    "ms-swift's chats": ({"messages": [*QUESTION, *GOOD], "rejected_messages": [*QUESTION, *BAD]}, QUESTION),
    "axolotl": ({"instruction": "q", "chosen_response": "good", "rejected_response": "bad"}, "q"),
    "stack-exchange-paired": ({"question": "q", "response_j": "good", "response_k": "bad"}, "q"),
    "ultrainteract": (
        {"trajectory": [{"from": "user", "value": "q"}], "chosen": "good", "rejected": "bad"},
        QUESTION,
    ),
    "spreadsheet": ({"Prompt": "q", " Chosen": "good", "Rejected ": "bad"}, "q"),
    "objects": ({"prompt": "q", "chosen": {"text": "good"}, "rejected": {"text": "bad"}}, "q"),
    "langchain": (
        {
            "prompt": [{"type": "human", "content": "q"}],
            "chosen": [{"type": "ai", "content": "good"}],
            "rejected": [{"type": "ai", "content": "bad"}],
        },
        QUESTION,
    ),
    "a chat that ends with the chosen": (
        {"messages": [*QUESTION, *GOOD], "chosen": "good", "rejected": "bad"},
        QUESTION,
    ),
    "nemo-rl": (
        {
            "context": QUESTION,
            "completions": [{"rank": 1, "completion": BAD}, {"rank": 0, "completion": GOOD}],
        },
        QUESTION,
    ),
    "judgebench": ({"question": "q", "response_A": "good", "response_B": "bad", "label": "A>B"}, "q"),
    "names with the model first": (
        {"prompt": "q", "model_a_answer": "good", "model_b_answer": "bad", "winner": "model_a"},
        "q",
    ),
    "numbers beside answers": (
        {"prompt": "q", "response_a": "good", "response_b": "bad", "score_a": 4, "score_b": "2.5"},
        "q",
    ),
    "ratings by the answer's name": (
        {
            "prompt": "q",
            "response_1": "good",
            "response_2": "bad",
            "response_1_rating": 4,
            "response_2_rating": 1,
        },
        "q",
    ),
}


@pytest.mark.parametrize("name", PREFERENCES)
def test_a_preference_is_read_with_its_prompt_and_nothing_is_left(name, read):
    row, prompt = PREFERENCES[name]
    found = read(row)
    assert found.comparisons == [Comparison(prompt, "good", "bad", "left")]
    assert not found.unread


def test_the_second_answer_wins_where_the_row_says_so(read):
    answers = {"prompt": "q", "response_a": "a", "response_b": "b"}
    for more in (
        {"label": "response_b"},
        {"winner": "A<B"},
        {"winner": "[[B>>A]]"},
        {"score_a": 1, "score_b": 2},
    ):
        (comparison,) = read(answers | more).comparisons
        assert comparison.preferred == "right"
    assert read(answers | {"winner": "A=B"}).comparisons[0].preferred == "tie"
    assert read(answers | {"rating_a": 2, "rating_b": 2}).comparisons[0].preferred == "tie"


def test_a_label_that_is_a_number_does_not_say_which_of_two_texts_is_better(reason):
    assert "it has 'label'" in reason({"text1": "a", "text2": "b", "label": 1})
    assert "it has 'label'" in reason({"text1": "a", "text2": "b", "label": "1"})


def test_each_good_answer_beats_each_bad_one(read):
    found = read({"prompt": "q", "chosen": ["a", "b"], "rejected": ["c", "d"], "num_correct": 2})
    pairs = [(one.left, one.right) for one in found.comparisons]
    assert pairs == [("a", "c"), ("a", "d"), ("b", "c"), ("b", "d")]
    assert {one.preferred for one in found.comparisons} == {"left"}


def test_two_summaries_and_the_number_of_the_better_one(read):
    summaries = [{"text": "s0", "policy": "p", "note": ""}, {"text": "s1", "policy": "q", "note": "n"}]
    row = {
        "info": {"id": "t", "post": "long", "site": None},
        "summaries": summaries,
        "choice": 1,
        "worker": "w",
    }
    assert read(row).comparisons == [Comparison("long", "s0", "s1", "right", "w")]
    rated = {"info": {"article": "long"}, "summary": {"text": "s", "axes": {"overall": 7}}, "worker": "w"}
    assert read(rated).ratings == [Rating("long", "s", 7.0, "w")]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [*QUESTION, *GOOD], "label": True}, Rating(QUESTION, "good", 1.0)),
        ({"messages": [*QUESTION, *GOOD], "score": 3}, Rating(QUESTION, "good", 3.0)),
        ({"instruction": "i", "input": "x", "output": "o", "kto_tag": False}, Rating("i\nx", "o", 0.0)),
        ({"prompt": "q", "completion": "c", "label": "thumbs_up"}, Rating("q", "c", 1.0)),
    ],
)
def test_one_answer_with_a_label_or_a_score(row, expected, read):
    assert read(row).ratings == [expected]


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "q", "generations": ["a", "b"], "rating": [9.0, 2.0]},
        {"question": "q", "answers": [{"text": "a", "pm_score": 9}, {"text": "b", "pm_score": 2}]},
        {
            "contents": [{"role": "user", "parts": [{"text": "q"}]}],
            "completions": [
                {"score": 9, "completion": {"role": "model", "parts": [{"text": "a"}]}},
                {"score": 2, "completion": {"role": "model", "parts": [{"text": "b"}]}},
            ],
        },
    ],
)
def test_answers_with_scores_under_other_names(row, read):
    found = read(row)
    assert [(one.completion, one.score) for one in found.ratings] == [("a", 9.0), ("b", 2.0)]
    assert not found.unread


@pytest.mark.parametrize(
    "more",
    [
        {"best": 1},
        {"chosen": "b"},
        {"pm_score": [1, 5]},
        {"preferred_index": "1"},
        {"votes": {"b": 3}},
        {"score": 4},
    ],
)
def test_the_order_of_completions_is_no_ranking_where_something_else_may_say_which_is_better(
    more, reason, read
):
    row = {"prompt": "q", "completions": ["a", "b"]}
    (name,) = more
    assert reason(row | more).startswith(f"{name}: may say which of completions is better")
    assert len(read(row | {"model": "m", "note": "from the pilot"}).comparisons) == 1


def test_numbers_inside_completions_that_are_not_known_are_no_reason_to_take_their_order(reason):
    completions = [{"response": "a", "fine-grained_score": 1.0}, {"response": "b", "fine-grained_score": 4.0}]
    assert reason({"instruction": "q", "completions": completions}).startswith(
        "completions[].fine-grained_score"
    )


def test_trees_of_open_assistant_compare_ranked_replies_at_each_turn(read, reason):
    last = [
        {"role": "assistant", "text": text, "rank": rank, "replies": []}
        for text, rank in (("x", 1), ("y", 0))
    ]
    follow_up = {"role": "prompter", "text": "more", "replies": last}
    replies = [
        {"role": "assistant", "text": "worse", "rank": 1, "replies": []},
        {"role": "assistant", "text": "best", "rank": 0, "replies": [follow_up]},
        {"role": "assistant", "text": "unranked", "rank": None, "replies": []},
        {"role": "assistant", "text": "deleted", "rank": 2, "deleted": True, "replies": []},
    ]
    tree = {
        "message_tree_id": "t",
        "tree_state": "ready",
        "prompt": {"role": "prompter", "text": "q", "replies": replies},
    }
    assert read(tree).comparisons == [
        Comparison(QUESTION, "best", "worse", "left"),
        Comparison([*QUESTION, assistant("best"), user("more")], "y", "x", "left"),
    ]
    flat = {"message_tree_id": "t", "parent_id": "p", "text": "a", "role": "assistant", "rank": 0}
    assert "one message of a conversation of Open Assistant" in reason(flat)


def test_what_an_answering_message_has_beside_its_text_is_named(read):
    chosen = [{"role": "assistant", "content": "good", "reasoning_content": "because"}]
    found = read({"prompt": QUESTION, "chosen": chosen, "rejected": BAD})
    assert found.unread.keys() == {"chosen[].reasoning_content"}
