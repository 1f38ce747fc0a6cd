"""Scripts in benchmarks, examples and tools, which no test runs: what they take from klimb is there, and called so."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(
    file for folder in ("benchmarks", "examples", "tools") for file in (ROOT / folder).rglob("*.py")
)


def taken_from_klimb(tree):
    """Names that a script imports from klimb, and what they are."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "klimb":
            module = importlib.import_module(node.module)
            for name in node.names:
                if not hasattr(module, name.name):
                    importlib.import_module(f"{node.module}.{name.name}")
                found[name.asname or name.name] = getattr(module, name.name)
        elif isinstance(node, ast.Import):
            for name in node.names:
                if name.name.split(".")[0] == "klimb":
                    module = importlib.import_module(name.name)
                    found[name.asname or "klimb"] = (
                        module if name.asname else importlib.import_module("klimb")
                    )
    return found


def called(function, names):
    """What a call's expression, `name` or `name.attribute.attribute`, is; None where that is not of klimb."""
    if isinstance(function, ast.Name):
        return names.get(function.id)
    if isinstance(function, ast.Attribute):
        owner = called(function.value, names)
        return getattr(owner, function.attr) if inspect.ismodule(owner) or inspect.isclass(owner) else None
    return None


def wrong_keywords(tree, names):
    """Calls of klimb's functions with a keyword that these have not, as `line: function(keyword)`."""
    wrong = []
    for node in ast.walk(tree):
        target = called(node.func, names) if isinstance(node, ast.Call) else None
        if target is None:
            continue
        parameters = inspect.signature(target).parameters.values()
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            continue
        known = {parameter.name for parameter in parameters}
        wrong += [
            f"{node.lineno}: {ast.unparse(node.func)}({keyword.arg})"
            for keyword in node.keywords
            if keyword.arg is not None and keyword.arg not in known
        ]
    return wrong


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_what_a_script_takes_from_klimb_is_there(script):
    tree = ast.parse(script.read_text(encoding="utf-8"))
    assert wrong_keywords(tree, taken_from_klimb(tree)) == []


def test_a_keyword_that_a_function_has_not_and_a_name_that_is_gone_are_found():
    lines = ["import klimb", "from klimb.core.ratios import ratios as r"]
    lines += ["r(1, 2, 3, of=1)", "klimb.k1(a=1)", "klimb.Objective(b=2)"]
    tree = ast.parse("\n".join(lines))
    assert wrong_keywords(tree, taken_from_klimb(tree)) == [
        "3: r(of)",
        "4: klimb.k1(a)",
        "5: klimb.Objective(b)",
    ]
    for gone in ("from klimb.core.ratios import quotients", "import klimb.core.quotients"):
        with pytest.raises(ImportError):
            taken_from_klimb(ast.parse(gone))
