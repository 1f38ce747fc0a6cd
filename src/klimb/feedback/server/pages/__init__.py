"""The comparison page's files: markup, style and script, none of which comes from elsewhere."""

from importlib import resources
from typing import Any

import jinja2

ASSETS = {
    "page.css": ("klimb.io", "text/css"),
    "label.css": (__name__, "text/css"),
    "keep.js": (__name__, "text/javascript"),
    "label.js": (__name__, "text/javascript"),
}
"""What the pages load: the package it is in and its type."""


def read_page(name: str, package: str = __name__) -> str:
    """Read one of the files."""
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")


def fill_page(template: str, **values: Any) -> str:
    """Fill in a template; every value is escaped."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(read_page(template)).render(values)
