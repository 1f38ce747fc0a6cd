"""Nothing in the source unpickles, evaluates text as code, or runs a shell."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(
    [*(ROOT / "src").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py"), *(ROOT / "tools").glob("*.py")]
)
MODULES = {"pickle", "cPickle", "_pickle", "dill", "joblib", "cloudpickle", "marshal", "shelve", "yaml"}
NAMES = {"eval", "exec", "compile"}
CALLS = {"torch.load", "torch.jit.load", "torch.hub.load", "numpy.fromregex", "pandas.read_pickle", "os.system",
         "os.popen"}  # fmt: skip
NEEDS = {"numpy.load": ("allow_pickle", False), "numpy.save": ("allow_pickle", False)}
SHORT = {"np": "numpy"}


def dotted(node):
    """The name of what is called, such as torch.load; None where it has none."""
    if isinstance(node, ast.Name):
        return SHORT.get(node.id, node.id)
    if isinstance(node, ast.Attribute) and (before := dotted(node.value)):
        return f"{before}.{node.attr}"
    return None


def imports(node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []


def findings(text):
    found = []
    for node in ast.walk(ast.parse(text)):
        found += [f"{node.lineno}: imports {name}" for name in imports(node) if name.split(".")[0] in MODULES]
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        keywords = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
        if name in NAMES | CALLS or keywords.get("shell") is True:
            found.append(f"{node.lineno}: calls {name}")
        if name in NEEDS and keywords.get(NEEDS[name][0]) is not NEEDS[name][1]:
            found.append(f"{node.lineno}: calls {name} without {NEEDS[name][0]}={NEEDS[name][1]}")
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_the_source_neither_unpickles_nor_runs_text(file):
    assert findings(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "import yaml as y",
        "torch.load(f)",
        "np.load(f)",
        "numpy.load(f, allow_pickle=True)",
        "eval('1')",
        "exec(text)",
        "subprocess.run(x, shell=True)",
        "os.system('x')",
        "np.save(f, a)",
    ],
)
def test_the_scan_finds_what_it_looks_for(line):
    assert len(findings(line)) == 1


@pytest.mark.parametrize(
    "line", ["model.eval()", "np.load(f, allow_pickle=False)", "loader.exec_module(m)", "re.compile(x)"]
)
def test_the_scan_leaves_alone_what_is_something_else(line):
    assert findings(line) == []
