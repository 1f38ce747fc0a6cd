"""TRL's rows and those of preference sets that look like them: whole chats, other names of a prompt, lists, labels."""

import json

import pytest

from klimb.feedback.comparison import Comparison, Rating


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


UF = {
    "prompt": "What is 2+2?",
    "prompt_id": "a1",
    "chosen": [user("What is 2+2?"), assistant("4")],
    "rejected": [user("What is 2+2?"), assistant("5")],
    "messages": [user("What is 2+2?"), assistant("4")],
    "score_chosen": 9.0,
    "score_rejected": 3.0,
}
FOUR = [Comparison([user("What is 2+2?")], "4", "5", "left")]


def test_a_text_prompt_beside_whole_chats_is_their_first_message(read):
    found = read(UF)
    assert found.comparisons == FOUR
    assert set(found.unread) == {
        "score_chosen",
        "score_rejected",
    }  # the copy of chosen and the id say nothing more
    assert (
        "columns not used, with the rows that have them: score_chosen (1), score_rejected (1)"
        in found.summary
    )


def test_the_same_with_messages_for_a_prompt_or_without_one(read):
    without = {key: value for key, value in UF.items() if key not in ("prompt", "messages")}
    assert read(without).comparisons == FOUR
    assert read(without | {"prompt": [user("What is 2+2?")]}).comparisons == FOUR
    assert read(without | {"messages": UF["messages"]}).comparisons == FOUR


@pytest.mark.parametrize("prompt", ["first", "second", [user("first")], None, ""])
def test_whole_chats_of_several_turns(read, prompt):
    shared = [system("Be kind."), user("first"), assistant("yes?"), user("second")]
    row = {"prompt": prompt, "chosen": [*shared, assistant("a")], "rejected": [*shared, assistant("b")]}
    assert read(row).comparisons == [Comparison(shared, "a", "b", "left")]


def test_a_prompt_that_is_not_what_the_chats_say_is_refused_with_both(reason):
    why = reason(UF | {"prompt": "What is 3+3?"})
    assert "'What is 3+3?' is not what the user says in chosen and rejected, 'What is 2+2?'" in why
    assert "not those that chosen and rejected begin with" in reason(UF | {"prompt": [user("What is 3+3?")]})


def test_chats_that_differ_before_their_last_answer_are_refused(reason):
    why = reason({"chosen": [user("x"), assistant("a")], "rejected": [user("y"), assistant("b")]})
    assert why.startswith("chosen and rejected differ before their last answer, in message 1")
    longer = [user("x"), assistant("a"), user("more"), assistant("c")]
    assert "in message 2" in reason({"chosen": longer, "rejected": [user("x"), assistant("b")]})


def test_whole_chats_with_the_same_answer_are_refused(reason):
    assert "the two completions are the same: '4'" in reason(UF | {"rejected": UF["chosen"]})


def test_a_chat_that_the_user_ends_is_refused_by_its_role(reason):
    row = {"chosen": [user("x"), user("y")], "rejected": [user("x"), assistant("b")]}
    assert reason(row) == "chosen: expected a last message of the assistant, got one of role 'user'"


@pytest.mark.parametrize(
    ("columns", "prompt"),
    [
        ({"instruction": "q"}, "q"),
        ({"question": "q"}, "q"),
        ({"query": "q"}, "q"),
        ({"input": "q"}, "q"),
        ({"instruction": "Translate.", "input": "hallo"}, "Translate.\nhallo"),
        ({"instruction": "q", "input": ""}, "q"),
        ({"system": "s", "question": "q"}, [system("s"), user("q")]),
        ({"system": "s", "input": "q"}, [system("s"), user("q")]),
        ({"system_prompt": "s", "prompt": "q"}, [system("s"), user("q")]),
        ({"system": "", "question": "q"}, [user("q")]),  # in the same file others have one
        ({"system": "s", "prompt": [user("q")]}, [system("s"), user("q")]),
        ({"system": "s", "prompt": [system("s"), user("q")]}, [system("s"), user("q")]),
        ({"conversations": [{"from": "human", "value": "q"}]}, [user("q")]),
        ({"context": [user("q")]}, [user("q")]),
        ({"messages": [{"role": "prompter", "content": "q"}]}, [user("q")]),
        ({"prompt": "q", "question": "q"}, "q"),
        ({"prompt": "Answer: q", "question": "q"}, "Answer: q"),  # made from it
        ({"instruction": "q", "history": [["a", "b"]]}, [user("a"), assistant("b"), user("q")]),
        ({"prompt": "\n\nHuman: q\n\nAssistant:"}, [user("q")]),
    ],
)
def test_a_prompt_under_other_names(read, columns, prompt):
    found = read({**columns, "chosen": "a", "rejected": "b"})
    assert found.comparisons == [Comparison(prompt, "a", "b", "left")]
    assert not found.unread


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        (
            {"prompt": "p", "question": "q"},
            "the prompt is in two columns that differ, 'prompt' and 'question'",
        ),
        ({"question": "q", "context": "Paris is big."}, "the column 'context' is not part of 'question'"),
        ({"prompt": [system("t"), user("q")], "system": "s"}, "differs from the system message"),
        ({"prompt": "q", "images": ["x.png"]}, "images: klimb reads only text"),
        ({"prompt": "q", "labels": [True]}, "labels: a preference has the columns chosen and rejected"),
        ({"prompt": "q", "status": "contested"}, "status: 'contested' is unknown"),
        (
            {"prompt": [{"role": "critic", "content": "q"}]},
            "prompt: message 1: the role 'critic' is not known",
        ),
        ({"prompt": [{"role": "user", "content": None}]}, "it has no content"),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
            "its content has a part of type 'image_url'; klimb reads only text",
        ),
    ],
)
def test_what_carries_meaning_and_is_not_understood_is_named(reason, columns, why):
    assert why in reason({**columns, "chosen": "a", "rejected": "b"})


def test_a_status_that_says_tie_or_draft_counts_as_that(read):
    row = {"system": "s", "input": "q", "chosen": "a", "rejected": "b", "status": "tie"}
    assert read(row).comparisons == [Comparison([system("s"), user("q")], "a", "b", "tie")]
    assert [c.preferred for c in read(row | {"status": "swapped"}).comparisons] == ["left"]
    found = read(row | {"status": "draft"})
    assert (found.comparisons, found.num_skipped) == ([], 1)
    assert "not counted: 1 rows of status 'draft'" in found.summary


def test_messages_of_other_tools_are_read_alike(read):
    row = {
        "conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q", "weight": None}],
        "chosen": {"from": "gpt", "value": "a"},
        "rejected": {
            "role": "assistant",
            "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}],
        },
    }
    assert read(row).comparisons == [Comparison([system("s"), user("q")], "a", "bc", "left")]


def test_what_a_message_says_beside_its_content_is_kept_or_named(read, reason):
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}], "name": None}
    prompt = [user("q"), call, {"role": "function", "content": "7", "timestamp": "t", "mood": "calm"}]
    found = read({"prompt": prompt, "chosen": "a", "rejected": "b"})
    assert found.comparisons[0].prompt == [
        user("q"),
        {"role": "assistant", "content": "", "tool_calls": call["tool_calls"]},
        {"role": "tool", "content": "7"},
    ]
    assert set(found.unread) == {"prompt[].mood"}
    assert "calls tools ('tool_calls')" in reason({"prompt": "q", "chosen": [call], "rejected": "b"})


def test_transcripts_with_a_system_turn_or_a_prompt_beside_them(read, reason):
    start = "\n\nSystem: s\n\nHuman: q\n\nAssistant:"
    row = {"chosen": f"{start} a", "rejected": f"{start} b"}
    expected = [Comparison([system("s"), user("q")], "a", "b", "left")]
    assert read(row).comparisons == expected
    assert read(row | {"prompt": start}).comparisons == expected
    assert read({"prompt": start, "chosen": " a", "rejected": " b", "response": " a"}).unread.keys() == {
        "response"
    }
    assert "differ before their last answer" in reason(row | {"rejected": "\n\nHuman: other\n\nAssistant: b"})


def test_unpaired_preferences_are_ratings_of_one_and_nought(read, reason):
    for label, score in (
        (True, 1.0),
        (False, 0.0),
        ("True", 1.0),
        ("false", 0.0),
        (1, 1.0),
        (0, 0.0),
        ("thumbs_down", 0.0),
    ):
        row = {"prompt": [user("q")], "completion": [assistant("a")], "label": label}
        assert read(row).ratings == [Rating([user("q")], "a", score)]
    assert (
        reason({"prompt": "q", "completion": "a", "label": "maybe"})
        == "label: expected true or false, got 'maybe'"
    )


def test_steps_with_labels_are_no_ranking(reason):
    row = {"prompt": "q", "completions": ["step one", "step two"], "labels": [True, False]}
    assert reason(row).startswith("labels: marks steps of one answer (TRL's stepwise supervision)")


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "q", "generations": ["a", "b"], "ratings": [1, 5.0]},  # distilabel
        {"instruction": "q", "completions": ["a", "b"], "scores": ["1", "5"]},
        {
            "instruction": "q",
            "completions": [{"response": "a", "overall_score": 1}, {"response": "b", "overall_score": 5}],
        },
    ],
)
def test_several_completions_with_scores_are_ratings(read, row):
    assert read(row).ratings == [Rating("q", "a", 1.0), Rating("q", "b", 5.0)]


def test_several_answers_with_ranks_are_compared_by_them(read, reason):
    nectar = {
        "prompt": "\n\nHuman: q\n\nAssistant: ",
        "answers": [
            {"answer": "worst", "model": "m", "rank": 3.0},
            {"answer": "best", "model": "n", "rank": 1.0},
            {"answer": "best too", "model": "o", "rank": 1.0},
        ],
        "turns": 1,
    }
    found = read(nectar)
    assert found.comparisons == [
        Comparison([user("q")], "best", "best too", "tie"),
        Comparison([user("q")], "best", "worst", "left"),
        Comparison([user("q")], "best too", "worst", "left"),
    ]
    assert set(found.unread) == {"turns"}
    why = reason({"prompt": "q", "responses": ["a", "b"]})
    assert why == (
        "responses: nothing says which is better; expected a column of scores or ranks; if nobody has judged, "
        "add --unjudged"
    )


def test_a_rating_with_more_than_one_number_names_the_others(read):
    row = {"prompt": "q", "response": "a", "helpfulness": 4, "correctness": 3, "verbosity": 1}
    found = read(row)
    assert found.ratings == [Rating("q", "a", 4.0)]
    assert set(found.unread) == {"correctness", "verbosity"}


def test_texts_and_chats_in_one_file_are_each_what_they_are(read):
    found = read({"prompt": [user("q")], "chosen": [assistant("a")], "rejected": "b"})
    assert found.comparisons == [Comparison([user("q")], "a", "b", "left")]


def test_chats_of_a_table_that_stand_as_json_in_its_fields(read, reason):
    row = {key: json.dumps(UF[key]) for key in ("chosen", "rejected")}
    assert read(row | {"prompt": "What is 2+2?"}).comparisons == FOUR
    assert read(row | {"prompt": json.dumps([user("What is 2+2?")])}).comparisons == FOUR
    why = reason({"prompt": "q", "chosen": str(UF["chosen"]), "rejected": str(UF["rejected"])})
    assert why.startswith("chosen: chat messages as Python prints them")
