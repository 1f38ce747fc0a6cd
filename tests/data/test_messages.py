"""Messages as other tools write them, in one form; what is no text is refused by its name."""

import json

import pytest

from klimb.data.messages import ROLES, MessageError, read_messages, unfold


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "user", "content": "x"}, {"role": "user", "content": "x"}),
        ({"from": "human", "value": "x"}, {"role": "user", "content": "x"}),
        ({"from": "gpt", "value": "x", "weight": None}, {"role": "assistant", "content": "x"}),
        ({"role": "Assistant", "text": "x"}, {"role": "assistant", "content": "x"}),
        ({"role": "developer", "content": "x"}, {"role": "system", "content": "x"}),
        ({"role": "model", "content": "x"}, {"role": "assistant", "content": "x"}),
        ({"role": "ipython", "content": "x"}, {"role": "tool", "content": "x"}),
        (
            {"role": "user", "content": ["a", {"type": "text", "text": "b"}]},
            {"role": "user", "content": "ab"},
        ),
        (
            {"role": "assistant", "content": None, "tool_calls": [1], "name": None},
            {"role": "assistant", "content": "", "tool_calls": [1]},
        ),
        ({"role": "user", "content": "x", "name": "ann"}, {"role": "user", "content": "x", "name": "ann"}),
    ],
)
def test_one_form_for_all(message, expected):
    given = dict(message)
    assert read_messages([message]) == [expected]
    assert message == given  # which is left as it was


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ("text", "expected a list of messages, got 'text'"),
        ([], "the list of messages is empty"),
        (["text"], "expected messages with a text `role` and `content`"),
        ([{"user": "x"}], "expected messages with a text `role` and `content`"),
        ([{"role": 1, "content": "x"}], "expected messages with a text `role` and `content`"),
        ([{"role": "user", "content": {"text": "x"}}], "expected messages with a text `role` and `content`"),
        ([{"role": "user", "content": None}], "it has no content"),
        (
            [{"role": "user", "content": "x"}, {"role": "critic", "content": "y"}],
            "message 2: the role 'critic' is not",
        ),
        (
            [{"role": "user", "content": [{"type": "image"}]}],
            "a part of type 'image'; klimb reads only text",
        ),
        ([{"role": "user", "content": [{"type": "text", "text": "x", "image": "y"}]}], "a part with 'image'"),
        ([{"role": "user", "content": "\ud800"}], "half of a surrogate pair"),
        ([{"role": "user", "content": [3]}], "expected parts of content that are text, got 3"),
    ],
)
def test_what_is_no_text_is_refused_by_its_name(messages, why):
    with pytest.raises(MessageError) as error:
        read_messages(messages)
    assert why in str(error.value)


def test_messages_that_stand_as_json_in_a_text_are_messages_and_other_texts_are_texts():
    chat = [{"role": "user", "content": "x"}]
    assert unfold(json.dumps(chat)) == chat
    for text in ("x", "[{", '[{"a": 1}]', "[{'a': 1}]", "[]", json.dumps(chat)[:-1]):
        assert unfold(text) == text
    with pytest.raises(
        MessageError, match=r"chat messages as Python prints them.*save them as \.jsonl or \.parquet"
    ):
        unfold(str(chat))


def test_every_role_is_one_that_chat_templates_know():
    assert set(ROLES.values()) == {"system", "user", "assistant", "tool"}
