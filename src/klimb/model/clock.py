"""The time that a chat template reads: one moment for a whole run, however long it takes and whenever it is resumed.

Templates of Llama 3.2, Mistral Small, SmolLM3 and gpt-oss write the date by `strftime_now`. Left to themselves they
write another prompt tomorrow, and two runs of one seed differ.
"""

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2

_MOMENT: ContextVar[datetime | None] = ContextVar("moment", default=None)
_NAME = "strftime_now"  # what transformers calls the function that tells the time; there is no other
_FROZEN = "{# klimb: the clock of this template stands at "


@contextmanager
def clock_at(moment: datetime) -> Iterator[None]:
    """Within, chat templates read this moment as the present one.

    Args:
        moment: Local time, without a zone, which is what templates read.
    """
    token = _MOMENT.set(moment)
    try:
        yield
    finally:
        _MOMENT.reset(token)


def current_moment() -> datetime:
    """What templates read now: the moment that is held, or else the present one."""
    return _MOMENT.get() or datetime.now().replace(microsecond=0)


def reads_clock(tokenizer: Any) -> bool:
    """Whether the chat template writes the time, and the time has not been fixed in it."""
    template = getattr(tokenizer, "chat_template", None)
    templates = template.values() if isinstance(template, dict) else [template]
    return any(_is_live(each) for each in templates)


def template_at_clock(tokenizer: Any, name: str | None = None, tools: Any = None) -> str | None:
    """Give a tokenizer's chat template in which the time is fixed, to hand to its `apply_chat_template`.

    Args:
        tokenizer: With a chat template, or several by name.
        name: Which of several, or a template itself; None leaves the choice to transformers.
        tools: Tools that the template is given, on which that choice depends.

    Returns:
        The template; `name` where it does not read the time, so that transformers takes the tokenizer's own.
    """
    if name is None and not reads_clock(tokenizer):
        return None
    template = tokenizer.get_chat_template(name, tools)
    return freeze_template(template, current_moment()) if _is_live(template) else name


def fix_clock(tokenizer: Any) -> datetime | None:
    """Fix the time in a tokenizer's own chat template, so that whatever loads it after a save reads it too.

    Returns:
        The moment; None where the template does not read the time.
    """
    if not reads_clock(tokenizer):
        return None
    moment, template = current_moment(), tokenizer.chat_template
    if isinstance(template, dict):
        tokenizer.chat_template = {
            name: freeze_template(each, moment) if _is_live(each) else each for name, each in template.items()
        }
    else:
        tokenizer.chat_template = freeze_template(template, moment)
    return moment


@lru_cache(maxsize=16)
def freeze_template(template: str, moment: datetime) -> str:
    """Put a macro before a template that stands in for `strftime_now`: it knows each format in the template.

    A format that the template puts together while it runs is not among them; the macro then raises, as templates do.
    """
    formats = sorted({text for text in _strings(template) if "%" in text})
    times = "{" + ", ".join(f"{text!r}: {moment.strftime(text)!r}" for text in formats) + "}"
    problem = (
        "klimb fixes the time that templates write, and knows no format but those written out in the template"
    )
    # transformers drops the newline after a block, so that the template's own first line begins where it did.
    return (
        f"{_FROZEN}{moment.isoformat()} #}}\n"
        f"{{% macro {_NAME}(format) %}}{{{{ {times}[format] if format in {times} "
        f"else raise_exception({problem!r}) }}}}{{% endmacro %}}\n{template}"
    )


def _is_live(template: Any) -> bool:
    return isinstance(template, str) and _NAME in template and not template.startswith(_FROZEN)


def _strings(template: str) -> Iterator[str]:
    """The strings that stand in a template's code; none where it is no template, which its use then says."""
    try:
        tokens = list(jinja2.Environment().lex(template))  # noqa: S701  nothing is rendered
    except jinja2.TemplateSyntaxError:
        return
    for _, kind, text in tokens:
        if kind == "string":
            yield ast.literal_eval(text)
