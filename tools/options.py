"""Write docs/options.md from the sections' dataclasses, so that the two cannot differ.

Run by `make format`; the tests compare.
"""

import ast
import dataclasses
import inspect
from pathlib import Path

from klimb.config.sections import SECTIONS

PAGE = Path(__file__).parent.parent / "docs" / "options.md"


def render() -> str:
    """Make the page."""
    lines = [
        "# Options of a run",
        "",
        "Each option is a flag of `klimb train` (`--num-steps 20`), an argument of `klimb.train` (`num_steps=20`), a",
        "key of a file given by `--config run.toml` (`num_steps = 20`, flat or in a table named after its section:",
        "`[optimizer]`), and a field of `klimb.config.train.TrainConfig`. The command line overrides the file.",
    ]
    for name, section in SECTIONS.items():
        lines += [
            "",
            f"## {name}",
            "",
            str(section.__doc__),
            "",
            "| option | default | what it is |",
            "|---|---|---|",
        ]
        texts = _docstrings(section)
        for field in dataclasses.fields(section):
            default = "required" if field.default is dataclasses.MISSING else f"`{field.default}`"
            text = texts[field.name].replace("|", "\\|").replace("<", "&lt;")
            lines.append(f"| `{field.name}` | {default} | {text} |")
    return "\n".join(lines) + "\n"


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
