"""Write docs/options.md from the dataclasses of the options, so that the two cannot differ.

Run by `make format`; the tests compare.
"""

import ast
import dataclasses
import inspect
import textwrap
from pathlib import Path
from typing import get_type_hints

import tyro

from klimb.cli import options as verbs
from klimb.config.sections import SECTIONS
from klimb.config.train import TrainConfig

PAGE = Path(__file__).parent.parent / "docs" / "options.md"
OTHERS = {
    "klimb label": verbs.Label,
    "klimb compare": verbs.Compare,
    "klimb reward train": verbs.RewardTrain,
    "klimb reward score": verbs.RewardScore,
    "klimb feedback import": verbs.FeedbackImport,
    "klimb feedback export": verbs.FeedbackExport,
    "klimb feedback show": verbs.FeedbackShow,
    "klimb feedback prioritise": verbs.FeedbackPrioritise,
    "klimb update": verbs.Update,
    "klimb demo": verbs.Demo,
}
"""The other verbs, and the options of each."""


def render() -> str:
    """Make the page."""
    lines = [
        "# Options",
        "",
        "Each option of a run is a flag of `klimb train` and `klimb check` (`--num-steps 20`), an argument of",
        "`klimb.train` (`num_steps=20`), a key of a file given by `--config run.toml` (`num_steps = 20`, flat or in a",
        "table named after its section: `[optimizer]`), and a field of `klimb.config.train.TrainConfig`. The command",
        "line overrides the file. The options of the [other commands](#other-commands) follow those of a run.",
    ]
    for name, section in SECTIONS.items():
        lines += ["", f"## {name}", *_table(section)]
    lines += [
        "",
        "## only on the command line",
        "",
        "Options of `klimb train` that are not part of the run's configuration.",
        *_rows(verbs.Train, without={field.name for field in dataclasses.fields(TrainConfig)}),
        "",
        "## other commands",
        "",
        "Names in capitals are given without a flag, in the order of the table.",
    ]
    for name, verb in OTHERS.items():
        lines += ["", f"### {name}", *_table(verb)]
    return "\n".join(lines) + "\n"


def _table(options: type) -> list[str]:
    paragraphs = (inspect.getdoc(options) or "").split("\n\n")
    words = [line for paragraph in paragraphs for line in ("", *textwrap.wrap(paragraph, 120))]
    return [*words, *_rows(options)]


def _rows(options: type, without: frozenset[str] | set[str] = frozenset()) -> list[str]:
    lines = ["", "| option | default | what it is |", "|---|---|---|"]
    texts, hints = _docstrings(options), get_type_hints(options, include_extras=True)
    for field in dataclasses.fields(options):
        if field.name in without:
            continue
        is_positional = tyro.conf.Positional in getattr(hints[field.name], "__metadata__", ())
        name = field.name.upper() if is_positional else field.name
        default = "required" if field.default is dataclasses.MISSING else f"`{field.default}`"
        text = texts[field.name].replace("|", "\\|").replace("<", "&lt;")
        lines.append(f"| `{name}` | {default} | {text} |")
    return lines


def _docstrings(section: type) -> dict[str, str]:
    """The string under each field, those of the sections that it extends included."""
    texts: dict[str, str] = {}
    for part in reversed(section.__mro__[:-1]):
        texts |= _own_docstrings(part)
    return texts


def _own_docstrings(section: type) -> dict[str, str]:
    (tree,) = ast.parse(inspect.getsource(section)).body
    assert isinstance(tree, ast.ClassDef)
    texts: dict[str, str] = {}
    for statement, following in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            assert isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            texts[statement.target.id] = " ".join(str(following.value.value).split())
    return texts


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
