"""Write src/klimb/config/keywords.py from the dataclasses of the options, so that editors complete and check them.

Run by `make format`; the tests compare.
"""

import ast
import dataclasses
import inspect
import re
import subprocess
import sys
from pathlib import Path

from klimb.config.pairwise import CompareConfig
from klimb.config.reward import RewardConfig
from klimb.config.sections import OptimizerOptions
from klimb.config.train import TrainConfig

FILE = Path(__file__).parent.parent / "src" / "klimb" / "config" / "keywords.py"
_OBJECTS = {"eval_prompts", "judges"}  # given as for `prompts` and `reward`
KEYWORDS = {
    "ResumeKeywords": ("klimb.Run.resume", TrainConfig, {"model", "prompts", "reward", "judges", "out"}),
    "RewardKeywords": ("klimb.RewardModel.fit", RewardConfig, {"feedback", "base", "out"}),
    "CompareKeywords": ("klimb.compare", CompareConfig, {"model", "prompts", "by", "out"}),
    "OptimizerKeywords": ("klimb.Optimizer", OptimizerOptions, {"lr"}),
}
"""Each class: the function, the configuration whose options it takes, and those that are arguments of their own."""


def render() -> str:
    """Make the module."""
    lines = [
        '"""Options as keyword arguments of the Python API; written by tools/keywords.py, not by hand."""',
        "",
        "from collections.abc import Sequence",
        "from pathlib import Path",
        "from typing import Any, Literal, TypedDict",
    ]
    for name, (function, config, without) in KEYWORDS.items():
        lines += ["", "", f"class {name}(TypedDict, total=False):"]
        lines += [f'    """Options of `{function}`; docs/options.md says what each is."""', ""]
        hints = _annotations(config)
        lines += [
            f"    {field.name}: {'Any' if field.name in _OBJECTS else _taken(hints[field.name])}"
            for field in dataclasses.fields(config)
            if field.name not in without
        ]
        if name == "ResumeKeywords":
            lines += ["", "", "class TrainKeywords(ResumeKeywords, total=False):"]
            lines += [
                '    """Options of `klimb.train` and `klimb.check`: the same, and judges."""',
                "",
                "    judges: Any",
            ]
    ruff = [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(FILE), "-"]
    source = "\n".join(lines) + "\n"
    return subprocess.run(ruff, input=source, capture_output=True, text=True, check=True).stdout


def _annotations(config: type) -> dict[str, str]:
    """The annotation of each field as the source has it."""
    found: dict[str, str] = {}
    for part in reversed(config.__mro__[:-1]):
        (tree,) = ast.parse(inspect.getsource(part)).body
        assert isinstance(tree, ast.ClassDef)
        for statement in tree.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                found[statement.target.id] = ast.unparse(statement.annotation)
    return found


def _taken(annotation: str) -> str:
    """What `klimb.config.values` takes for a field of this type."""
    parts = annotation.split(" | ")
    if "Path" in parts:
        return " | ".join(["str", *parts])
    if annotation == "tuple[str, ...]":
        return "str | Sequence[str]"
    return re.sub(r"tuple\[(\w+), [^]]+\]", r"Sequence[\1]", annotation)


if __name__ == "__main__":
    FILE.write_text(render(), encoding="utf-8")
