"""Markdown of other people's, shown safely."""

import pytest

from klimb.feedback.server.markdown import show_markdown


def test_headings_stand_below_the_pages_own():
    assert show_markdown("# a\n\n## b\n\n###### c") == "<h3>a</h3>\n<h4>b</h4>\n<h6>c</h6>\n"


def test_line_breaks_are_kept():
    assert show_markdown("one\ntwo") == "<p>one<br />\ntwo</p>\n"


def test_a_link_opens_apart_and_tells_nothing():
    link = '<a href="https://a.example/?a=1&amp;b=2" rel="noopener noreferrer" target="_blank">'
    assert show_markdown("[x](https://a.example/?a=1&b=2)") == f"<p>{link}x</a></p>\n"
    assert show_markdown("<HTTP://a.example>").count('target="_blank"') == 1


@pytest.mark.parametrize(
    "target",
    [
        "javascript:alert(1)",
        "JaVaScRiPt:alert(1)",
        "&#106;avascript:alert(1)",
        "data:text/html,x",
        "data:image/png;base64,aaaa",
        "vbscript:x",
        "file:///etc/passwd",
        "/results",
        "//evil.example",
        "ftp://a.example",
    ],
)
def test_a_link_to_anything_but_the_web_is_text(target):
    for written in (f"[x]({target})", f"![x]({target})", f"<{target}>", f"[x]\n\n[x]: {target}"):
        shown = show_markdown(written)
        assert "<a" not in shown
        assert "<img" not in shown


def test_a_picture_is_not_fetched():
    shown = show_markdown("![alt](https://b.example/p.png)")
    assert "<img" not in shown
    assert ">alt</a>" in shown


@pytest.mark.parametrize(
    "text",
    [
        "<script>x()</script>",
        "a <img src=x onerror=x()> b",
        "<svg/onload=x()>",
        '```js" onload="x()\n<script>\n```',
        "`<b onclick=x()>`",
        '[x](https://a.example "t\\" onclick=x()")',
        '[x](https://a.example/"onclick=x())',
        "| <b> | b |\n|--:|:-:|\n| <i> | 2 |",
        "<!-- <b> -->",
    ],
)
def test_no_markup_of_the_texts_own_gets_through(text):
    shown = show_markdown(text)
    for forbidden in ("<script", "<img", "<svg", "<b", "<i", "<!", "style=", '" on'):
        assert forbidden not in shown.replace("<br", "")


def test_columns_are_aligned_without_a_style():
    shown = show_markdown("| a | b |\n|--:|:-:|\n| 1 | 2 |")
    assert '<th class="align-right">a</th>' in shown
    assert '<td class="align-center">2</td>' in shown
