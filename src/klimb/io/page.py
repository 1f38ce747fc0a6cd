"""Self-contained pages: one style, figures as SVG that take their text colour from the page around them."""

import html
import io
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas

LINE = "#2f7fd1"
ACCENT = "#e0662d"
_INK = "#010203"  # stands for the page's own text colour; replaced in the SVG
_STYLE = {
    "axes.edgecolor": _INK,
    "axes.grid": True,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "sans-serif",
    "font.size": 10,
    "grid.alpha": 0.15,
    "grid.color": _INK,
    "svg.fonttype": "none",
    "text.color": _INK,
    "text.parse_math": False,  # a dollar in a name begins no formula
    "xtick.color": _INK,
    "ytick.color": _INK,
}


@dataclass(frozen=True)
class Figure:
    """A picture with what it shows.

    Attributes:
        title: A few words.
        caption: What the reader sees in it.
        svg: The picture, to be put into a page.
    """

    title: str
    caption: str
    svg: str


def draw_figure(title: str, caption: str, draw: Callable[[Any], None]) -> Figure:
    """Let `draw` draw on matplotlib axes, and make a figure of that."""
    # The salt keeps the ids of several pictures on one page apart, and the same from run to run.
    with mpl.rc_context(_STYLE | {"svg.hashsalt": title}):  # pyright: ignore[reportArgumentType]
        canvas = Canvas(figsize=(4.4, 2.8), layout="constrained")
        canvas.patch.set_alpha(0)
        axes = canvas.add_subplot()
        axes.patch.set_alpha(0)
        draw(axes)
        buffer = io.StringIO()
        FigureCanvasSVG(canvas).print_svg(buffer, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    return Figure(title, caption, svg[svg.index("<svg") :].replace(_INK, "currentColor"))


def render(package: str, template: str, **values: Any) -> str:
    """Fill in a package's template; every value is escaped unless the template says that it is markup."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    text = resources.files(package).joinpath(template).read_text(encoding="utf-8")
    style = resources.files("klimb.io").joinpath("page.css").read_text(encoding="utf-8")
    return environment.from_string(text).render(style=style, **values)


def in_notebook(page: Path, height: int = 640) -> str:
    """Give a page as HTML that a notebook shows as a frame.

    Args:
        page: The page, which loads nothing from elsewhere.
        height: Of the frame, in pixels.
    """
    content = html.escape(page.read_text(encoding="utf-8"), quote=True)
    return f'<iframe srcdoc="{content}" style="width:100%;height:{height}px;border:0"></iframe>'
