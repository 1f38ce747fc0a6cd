"""Markdown that a model or a person wrote, as markup which is safe to show.

No HTML, image or style of the text's own gets through, and a link leads to http or https only.
"""

import functools

from markdown_it import MarkdownIt
from markdown_it.token import Token

_LEVELS_DOWN = 2  # a text's headings stand below the page's own two levels
_LINK = {"rel": "noopener noreferrer", "target": "_blank"}


class _Markdown(MarkdownIt):
    def validateLink(self, url: str) -> bool:  # noqa: N802  markdown-it's name
        return url.lower().startswith(("http://", "https://"))


@functools.lru_cache(maxsize=2048)
def show_markdown(text: str) -> str:
    """Turn Markdown into markup; single line breaks are kept."""
    tokens = _MARKDOWN.parse(text)
    for token in tokens:
        _tame(token)
        for child in token.children or ():
            _tame(child)
    return _MARKDOWN.renderer.render(tokens, _MARKDOWN.options, {})


def _tame(token: Token) -> None:
    if token.type in ("heading_open", "heading_close"):
        token.tag = f"h{min(int(token.tag[1]) + _LEVELS_DOWN, 6)}"
    elif token.type == "link_open":
        token.attrs |= _LINK
    elif style := token.attrs.pop(
        "style", None
    ):  # a column's alignment, which the page may not take as a style
        token.attrs["class"] = str(style).replace("text-align:", "align-")


def _make_markdown() -> MarkdownIt:
    markdown = _Markdown("commonmark", {"html": False, "breaks": True})
    markdown.enable(["table", "strikethrough"]).disable(["image", "html_block", "html_inline"])
    markdown.parse("Its *rules* are put in order the first time, which threads must not do at once.")
    return markdown


_MARKDOWN = _make_markdown()
