"""What of a text may be shown or written."""

import pytest

from klimb.io.show import cut, null_in, printable, problem_with, quote, redact, redacted, safe

SECRET = "hunter2"  # noqa: S105


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://ann:{SECRET}@host/feedback",
        f"postgresql+psycopg://ann:{SECRET}@host:5432/feedback?sslmode=require",
        f"postgresql:/ann:{SECRET}@host/feedback",  # as a Path writes it
        f"postgresql://ann:{SECRET}/@{SECRET}?@host/feedback",  # characters that should have been quoted
        f"postgresql://host/feedback?user=ann&password={SECRET}",
        f"http://ann:{SECRET}@host/score",
        f"https://{SECRET}@host/score",
        f"HTTPS://host/score?model=a&API_KEY={SECRET}",
        f"https://host/score?access_token={SECRET}#top",
        f"https://host/?sig={SECRET};n=1",
        f"s3://key:{SECRET}@bucket/prompts.jsonl",
        f"cannot reach 'http://ann:{SECRET}@host/x' or http://b:{SECRET}@host, twice",
    ],
)
def test_no_secret_of_an_address_is_left(url):
    assert SECRET not in redact(url)
    assert "host" in redact(url) or "bucket" in redact(url)


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://ann@host/feedback",
        "http://host:8000/score?email=a@b&n=1",
        "runs/a:b@c",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "file.py:function",
        "3:1 at http://localhost:8321/",
        "mail ann@example.org: the keys=3 are there",
    ],
)
def test_what_is_no_secret_stays(text):
    assert redact(text) == text


def test_options_are_redacted_however_deep_and_else_left_alone():
    options = {
        "store": f"postgresql://a:{SECRET}@h/d",
        "by": ("people", f"http://u:{SECRET}@h"),
        "n": 1,
        "none": None,
    }
    assert redacted(options) == {
        "store": "postgresql://a:***@h/d",
        "by": ["people", "http://***@h"],
        "n": 1,
        "none": None,
    }


def test_nothing_that_steers_a_terminal_is_left_and_letters_are():
    hostile = "\x1b[2J\x9b31m\x1b]0;t\x07 \r\b\x7f\u202e\u2066\ud800\0"
    shown = printable(hostile)
    assert all(c.isprintable() for c in shown)
    assert "\\x1b[2J" in shown
    assert "\\u202e" in shown
    letters = "naïve 🙂 👨\u200d👩\u200d👧 שלום مرحبا\u00a0می\u200cخواهم\nnext\tline 日本語\u3000"
    assert printable(letters) == letters


def test_a_quoted_text_is_one_short_line():
    assert cut("  a\nb\t\x1b[1m ") == "a\\nb\\t\\x1b[1m"
    assert cut("é" * 100) == "é" * 60 + "…"


def test_what_cannot_be_written_out_is_still_named():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert quote(deep) == "a list that cannot be shown"
    assert quote(10**5000) == "a int that cannot be shown"
    assert quote({"a": 1}) == "{'a': 1}"
    while deep:  # taken apart level by level: its own end would go as deep
        deep = deep.pop()


def test_a_deep_or_broken_message_is_a_problem_not_a_crash():
    assert "half of a surrogate pair" in problem_with([{"role": "\udc00", "content": "x"}])
    assert "half of a surrogate pair" in problem_with([{"role": "user", "content": "\ud800"}])


def test_a_null_byte_is_found_in_text_and_messages():
    assert null_in("ab\0") == "a null byte at character 2 is not text"
    assert null_in([{"role": "user", "content": "\0"}]) == "a null byte at character 0 is not text"
    assert null_in("\x01\x1b") is None


def test_a_text_for_a_terminal_is_redacted_and_printable():
    assert safe(f"\x1b[1mhttp://a:{SECRET}@h") == "\\x1b[1mhttp://***@h"
