"""The time in chat templates: fixed for a run, to the letter of what transformers would have written then."""

from datetime import datetime

import pytest
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

from klimb.errors import DataError
from klimb.model import clock
from klimb.model.chat import render
from klimb.model.clock import clock_at, fix_clock, freeze_template, reads_clock, template_at_clock

THEN = datetime(2026, 11, 26, 9, 8, 7)
LATER = datetime(2027, 1, 2, 3, 4, 5)
MESSAGES = [{"role": "user", "content": "hi"}]
LLAMA = (  # as Llama 3.2 writes the date
    "{{- bos_token }}\n{%- if not date_string is defined %}\n    {%- if strftime_now is defined %}\n"
    '        {%- set date_string = strftime_now("%d %b %Y") %}\n    {%- else %}\n'
    '        {%- set date_string = "26 Jul 2024" %}\n    {%- endif %}\n{%- endif %}\n'
    '{{- "Today Date: " + date_string + "\\n\\n" }}\n{%- for m in messages %}\n{{- m.content }}\n{%- endfor %}\n'
)
MISTRAL = (  # as Mistral Small does, with a date that it computes with
    '{%- set today = strftime_now("%Y-%m-%d") %}\n{%- set year = today.split("-")[0]|int %}\n'
    "The current date is {{ today }}, last year was {{ year - 1 }}.\n"
    "{% for m in messages %}[INST]{{ m.content }}{% endfor %}"
)
GPT_OSS = (  # as gpt-oss does, within a macro
    "{%- macro build_system_message() -%}\n"
    '{{- "Current date: " + strftime_now("%Y-%m-%d") + "\\n" }}\n{%- endmacro -%}\n'
    "<|start|>{{ build_system_message() }}{% for m in messages %}{{ m.content }}{% endfor %}"
)
OTHERS = [
    "\n  {{ strftime_now('%H:%M:%S') }}\n\n{% for m in messages %}\n   {{ m.content }}\n{% endfor %}\n",
    "   {% if true %}\n  {% set f = '%A, %d. %B' %}\n{% endif %}{{ strftime_now(f) }}it's \"100 %\"",
    "{{ strftime_now(format='%y%%') }}{% generation %}x{% endgeneration %}{{ {'%Y': strftime_now('%Y')}['%Y'] }}",
    "{% for m in messages %}{{ strftime_now('%j') }}{% break %}{% endfor %}",
]


class Clock(datetime):
    @classmethod
    def now(cls, tz=None):
        return THEN if tz is None else THEN.astimezone(tz)


class Forbidden(datetime):
    @classmethod
    def now(cls, tz=None):  # noqa: ARG003
        raise AssertionError("the present time was read")


@pytest.fixture
def tokenizer_of(tokenizer, tmp_path):
    def make(template):
        tokenizer.save_pretrained(tmp_path / "tokenizer")
        copy = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
        copy.chat_template = template
        return copy

    return make


@pytest.mark.parametrize("template", [LLAMA, MISTRAL, GPT_OSS, *OTHERS])
def test_a_template_writes_what_it_would_have_written_at_the_moment(template, tokenizer_of, monkeypatch):
    tokenizer = tokenizer_of(template)
    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    expected = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    monkeypatch.setattr(chat_template_utils, "datetime", Forbidden)
    with clock_at(THEN):
        assert render(tokenizer, MESSAGES) == expected
    with clock_at(LATER):
        assert render(tokenizer, MESSAGES) != expected


def test_outside_of_a_run_it_is_the_present_time(tokenizer_of, monkeypatch):
    monkeypatch.setattr(clock, "datetime", Clock)
    assert render(tokenizer_of("{{ strftime_now('%d.%m.%Y') }}"), MESSAGES) == "26.11.2026"


def test_a_template_without_a_time_is_left_to_transformers(tokenizer_of):
    tokenizer = tokenizer_of("{% for m in messages %}{{ m.content }}{% endfor %}")
    assert not reads_clock(tokenizer)
    with clock_at(THEN):
        assert template_at_clock(tokenizer) is None
        assert fix_clock(tokenizer) is None
        assert render(tokenizer, MESSAGES) == "hi"


def test_of_several_templates_the_one_that_is_used_reads_the_time(tokenizer_of):
    tokenizer = tokenizer_of(
        {"default": "{{ strftime_now('%Y') }}", "tool_use": "tools of {{ strftime_now('%Y') }}"}
    )
    with clock_at(THEN):
        assert render(tokenizer, MESSAGES) == "2026"
        assert fix_clock(tokenizer) == THEN
    with clock_at(LATER):
        assert render(tokenizer, MESSAGES) == "2026"


def test_a_time_that_is_fixed_stays_after_a_save_for_whoever_loads_it(tokenizer_of, monkeypatch, tmp_path):
    tokenizer = tokenizer_of(LLAMA)
    with clock_at(THEN):
        assert fix_clock(tokenizer) == THEN
    tokenizer.save_pretrained(tmp_path / "saved")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert not reads_clock(loaded)
    monkeypatch.setattr(chat_template_utils, "datetime", Forbidden)
    with clock_at(LATER):
        assert "Today Date: 26 Nov 2026" in render(loaded, MESSAGES)
    assert "Today Date: 26 Nov 2026" in loaded.apply_chat_template(MESSAGES, tokenize=False)


def test_a_format_that_is_put_together_is_refused_in_words(tokenizer_of):
    with (
        clock_at(THEN),
        pytest.raises(DataError, match="klimb fixes the time that templates write, and knows no"),
    ):
        render(tokenizer_of("{{ strftime_now('%d' ~ ' %b') }}"), MESSAGES)


def test_a_template_that_is_none_is_left_to_its_use():
    assert freeze_template("{{ strftime_now('%Y') }", THEN).endswith("{{ strftime_now('%Y') }")
