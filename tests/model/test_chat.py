"""Chat templates as models have them: prefill, tools, the token that begins a text, and what a template refuses."""

import json

import pytest

from klimb.errors import DataError
from klimb.model import chat
from templates import ALL, CHATML, DEEPSEEK_R1, GEMMA, LLAMA_3, MISTRAL, QWEN_3, byte_tokenizer

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def assistant(content):
    return {"role": "assistant", "content": content}


@pytest.mark.parametrize("name", ALL)
def test_a_prompt_ends_where_the_assistant_is_to_speak(name):
    tokenizer = byte_tokenizer(ALL[name])
    expected = tokenizer.apply_chat_template([USER], tokenize=False, add_generation_prompt=True)
    assert chat.render(tokenizer, [USER]) == expected


@pytest.mark.parametrize("name", ALL)
def test_an_assistants_last_message_is_continued_as_transformers_continues_it(name):
    tokenizer = byte_tokenizer(ALL[name])
    prompt = [USER, assistant("I think")]
    expected = tokenizer.apply_chat_template(prompt, tokenize=False, continue_final_message=True)
    assert chat.render(tokenizer, prompt) == expected


@pytest.mark.parametrize("name", ALL)
def test_a_message_that_is_continued_keeps_the_white_space_at_its_end(name):
    assert chat.render(byte_tokenizer(ALL[name]), [USER, assistant("I think:\n ")]).endswith("I think:\n ")


@pytest.mark.parametrize("name", ALL)
def test_an_open_thought_that_is_continued_stays_open(name):
    rendered = chat.render(byte_tokenizer(ALL[name]), [USER, assistant("<think>\nLet me")])
    assert rendered.endswith("<think>\nLet me")
    assert rendered.count("<think>") == 1
    assert "</think>" not in rendered


def test_a_thought_that_a_template_would_remove_is_continued():
    rendered = chat.render(byte_tokenizer(DEEPSEEK_R1), [USER, assistant("<think>\nah\n</think>\n\nSo")])
    assert rendered == "<s><|User|>hi<|Assistant|><think>\nah\n</think>\n\nSo"


@pytest.mark.parametrize("content", ["", " \n"])
def test_an_empty_message_of_the_assistants_is_the_beginning_of_its_turn(content):
    tokenizer = byte_tokenizer(CHATML)
    assert chat.render(tokenizer, [USER, assistant(content)]) == chat.render(tokenizer, [USER]) + content


def test_a_message_that_a_template_without_headers_changes_is_refused():
    template = "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
    with pytest.raises(DataError, match="changes the assistant's last message, which is to be continued"):
        chat.render(byte_tokenizer(template), [USER, assistant("well")])


def test_a_call_of_tools_without_a_result_cannot_be_continued():
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "f", "arguments": {}}}],
    }
    with pytest.raises(DataError, match="calls tools and no result follows"):
        chat.render(byte_tokenizer(CHATML), [USER, call])


@pytest.mark.parametrize(
    "tools", [[TOOL], json.dumps([TOOL]), [json.dumps(TOOL)], [TOOL | {"strict": None}]], ids=str
)
def test_tools_reach_the_template_as_they_are_as_json_and_without_nulls(tools):
    tokenizer = byte_tokenizer(QWEN_3)
    expected = tokenizer.apply_chat_template([USER], tools=[TOOL], tokenize=False, add_generation_prompt=True)
    assert '"weather"' in expected
    assert chat.render(tokenizer, [USER], {"tools": tools, "other": 1}) == expected


@pytest.mark.parametrize("tools", [None, [], "", "[]"])
def test_no_tools_are_none(tools):
    tokenizer = byte_tokenizer(QWEN_3)
    assert chat.render(tokenizer, [USER], {"tools": tools}) == chat.render(tokenizer, [USER])


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ("hammer", "tools: expected JSON where it is text, got 'hammer'"),
        (["hammer"], "tools: expected JSON where it is text"),
        ([3], "tools: expected a list of JSON schemas, which the chat template is given, got 3 in it"),
        (
            3,
            "tools: expected a list of JSON schemas, which the chat template is given, got 3; give the column",
        ),
    ],
)
def test_tools_that_are_none_are_named(tools, message):
    with pytest.raises(DataError, match=message):
        chat.render(byte_tokenizer(QWEN_3), [USER], {"tools": tools})


def test_keys_without_a_value_do_not_reach_the_template():
    template = (
        "{% for m in messages %}{% if 'tool_calls' in m %}{{ raise_exception('one') }}{% endif %}{% endfor %}"
    )
    tokenizer = byte_tokenizer(template + CHATML)
    filled = USER | {"tool_calls": None, "name": None}
    assert chat.render(tokenizer, [filled]) == chat.render(tokenizer, [USER])
    assert filled == USER | {"tool_calls": None, "name": None}


def test_arguments_of_tool_calls_are_objects_for_the_template():
    template = "{% for c in messages[1].tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}"
    call = assistant(None) | {"tool_calls": [{"function": {"name": "f", "arguments": '{"city": "Bern"}'}}]}
    rendered = chat.render_whole(byte_tokenizer(template), [USER, call, {"role": "tool", "content": "4"}])
    assert rendered == '{"city": "Bern"}'


def test_variables_of_the_template_come_from_the_row():
    tokenizer = byte_tokenizer(QWEN_3)
    for given in ({"enable_thinking": False}, '{"enable_thinking": false}'):
        rendered = chat.render(tokenizer, [USER], {"chat_template_kwargs": given})
        assert rendered.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    with pytest.raises(DataError, match="chat_template_kwargs: tokenize is set by klimb"):
        chat.render(tokenizer, [USER], {"chat_template_kwargs": {"tokenize": True}})
    with pytest.raises(DataError, match="chat_template_kwargs: expected an object"):
        chat.render(tokenizer, [USER], {"chat_template_kwargs": [1]})


def test_of_several_templates_the_one_for_tools_is_taken_where_there_are_tools():
    tokenizer = byte_tokenizer({"default": CHATML, "tool_use": QWEN_3, "rag": "{{ documents[0].text }}"})
    assert chat.render(tokenizer, [USER]) == chat.render(byte_tokenizer(CHATML), [USER])
    assert '"weather"' in chat.render(tokenizer, [USER], {"tools": [TOOL]})
    given = {"chat_template": "rag", "documents": [{"title": "t", "text": "found"}]}
    assert chat.render(tokenizer, [USER], {"chat_template_kwargs": given}) == "found"
    with pytest.raises(DataError, match="multiple chat templates with no default"):
        chat.render(byte_tokenizer({"rag": "x"}), [USER])


@pytest.mark.parametrize("name", ALL)
def test_no_prompt_begins_twice(name):
    for tokenizer in (byte_tokenizer(ALL[name], adds_bos=True), byte_tokenizer(ALL[name])):
        ids = chat.encode(tokenizer, [USER])
        assert ids.count(tokenizer.bos_token_id) == ("<s>" in chat.render(tokenizer, [USER]))
        # A prompt that someone has rendered by hand, which begins with the token as well.
        assert chat.encode(tokenizer, "<s>hi").count(tokenizer.bos_token_id) == 1
    assert chat.encode(byte_tokenizer(adds_bos=True), "hi")[0] == tokenizer.bos_token_id


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (
            GEMMA,
            [{"role": "system", "content": "Be brief."}, USER],
            "refuses the messages: System role not supported; move the system message to the beginning of the first",
        ),
        (
            MISTRAL,
            [USER, USER],
            "roles must alternate .*; its roles are user, user: join messages of one role",
        ),
        ("{{ nothing.at_all }}", [USER], "refuses the messages: UndefinedError: 'nothing' is undefined"),
        ("{{ messages[0].content + 1 }}", [USER], "refuses the messages: TypeError"),
        ("{{ ''.__class__.__mro__ }}", [USER], "refuses the messages: SecurityError"),
        ("\n{% for m in %}", [USER], "chat template is broken at its line 2"),
        (None, [USER], "tokenizer has no chat template"),
    ],
)
def test_what_a_template_raises_becomes_an_error_with_its_words(template, messages, message):
    with pytest.raises(DataError, match=message):
        chat.encode(byte_tokenizer(template), messages)


def test_text_in_parts_is_one_text():
    parts = {"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}
    tokenizer = byte_tokenizer(LLAMA_3)
    assert chat.render(tokenizer, [parts]) == chat.render(tokenizer, [USER])


def test_what_continues_a_message_is_one_turn_with_it():
    for template in ALL.values():
        tokenizer = byte_tokenizer(template)
        whole = chat.conversation([USER, assistant("I think")], " so.")
        assert whole == [USER, assistant("I think so.")]
        assert chat.render_whole(tokenizer, whole) == tokenizer.apply_chat_template(
            [USER, assistant("I think so.")], tokenize=False
        )


def test_a_thought_that_the_prompt_opened_is_whole_for_a_reward_model():
    prompt = [USER]
    opened = chat.opening(prompt, chat.render(byte_tokenizer(DEEPSEEK_R1), prompt))
    assert opened == "<think>\n"
    assert chat.conversation(prompt, "hm</think>yes", opened)[-1] == assistant("<think>\nhm</think>yes")
    assert chat.conversation(prompt, "hm and hm", opened)[-1] == assistant("<think>\nhm and hm")
    # Without the policy a thought that is closed and was not opened tells as much.
    assert chat.conversation(prompt, "hm</think>yes")[-1] == assistant("<think>\nhm</think>yes")
    assert chat.conversation(prompt, "<think>hm</think>yes", opened)[-1] == assistant("<think>hm</think>yes")
    assert chat.opening(prompt, chat.render(byte_tokenizer(QWEN_3), prompt)) == ""
    asked = [{"role": "user", "content": "What is <think>"}]
    assert chat.opening(asked, "What is <think>") == ""


def test_a_text_is_answered_by_messages_as_a_users():
    assert chat.conversation("hi", [assistant("yes")]) == [USER, assistant("yes")]
    assert chat.conversation("", [assistant("yes")]) == [assistant("yes")]
