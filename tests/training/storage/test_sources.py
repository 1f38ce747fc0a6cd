"""Which files a run reads: data, models, functions and what these import."""

import sys

import pytest

from klimb.training.storage.sources import files_of_data, files_of_function, files_of_model


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder of one's own programs, and beside it what a package index would have installed."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name, text in {
        "rewards.py": "import helper\nfrom tools import words\nimport json, numpy, installed\n"
        "def f(completions, **_):\n    from late import weigh\n    import importlib\n"
        "    importlib.import_module('plugins.loud')\n    return [0.0] * len(completions)\n",
        "helper.py": "import deeper.inner\n",
        "deeper/__init__.py": "",
        "deeper/inner.py": "from . import sister\nfrom .cousins import one\nfrom .. import unrelated_to_packages\n",
        "deeper/sister.py": "import helper  # a circle\n",
        "deeper/cousins.py": "one = 1\n",
        "tools/__init__.py": "",
        "tools/words.py": "not Python (",
        "late.py": "",
        "plugins/loud.py": "",
        "unused.py": "",
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    site = tmp_path / "site-packages"
    (site / "installed").mkdir(parents=True)
    (site / "installed/__init__.py").write_text("from . import part\nimport other\n")
    (site / "installed/part.py").write_text("")
    (site / "other.py").write_text("")
    monkeypatch.syspath_prepend(site)
    usual = "klimb.training.storage.sources.sysconfig.get_path"
    monkeypatch.setattr(usual, lambda _name: str(site))
    monkeypatch.setattr(sys, "path", [str(site)])
    monkeypatch.chdir(tmp_path)
    return folder


OWN = {
    "content": "rewards.py",
    "helper.py": "helper.py",
    "deeper/__init__.py": "deeper/__init__.py",
    "deeper/inner.py": "deeper/inner.py",
    "deeper/sister.py": "deeper/sister.py",
    "deeper/cousins.py": "deeper/cousins.py",
    "tools/__init__.py": "tools/__init__.py",
    "tools/words.py": "tools/words.py",
    "late.py": "late.py",
    "plugins/loud.py": "plugins/loud.py",
}


def test_a_function_is_its_file_and_all_local_modules_that_it_imports(project):
    found = files_of_function(str(project / "rewards.py"))
    assert {name: file.relative_to(project).as_posix() for name, file in found.items()} == OWN


def test_a_module_is_found_where_the_command_runs(project, monkeypatch):
    monkeypatch.chdir(project)
    assert set(files_of_function("rewards")) == set(OWN)
    assert set(files_of_function("deeper.inner")) >= {"content", "__init__.py", "sister.py", "cousins.py"}
    assert files_of_function("deeper.inner")["content"] == project / "deeper/inner.py"


def test_of_an_installed_module_its_own_package_is_looked_at(project):
    found = files_of_function("installed")
    assert set(found) == {"content", "part.py"}
    assert found["content"] == project.parent / "site-packages/installed/__init__.py"


def test_klimb_itself_is_none_of_a_functions_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rewards.py").write_text("from klimb.reward.vader import vader\nimport own\n")
    (tmp_path / "own.py").write_text("")
    assert set(files_of_function("rewards.py")) == {"content", "own.py"}


def test_what_is_not_there_has_no_files(project):
    assert files_of_function(str(project / "none.py")) == {}
    assert files_of_function("no.such.module") == {}
    assert files_of_data(project / "none.jsonl") == {}
    assert files_of_model(project / "none") == {}


def test_data_are_a_file_or_all_of_a_folder_but_caches(tmp_path):
    for name in ("state.json", "data-00000.arrow", "shards/a.parquet", "cache-12.arrow", ".hidden", ".git/x"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text("")
    assert files_of_data(tmp_path / "data/state.json") == {"content": tmp_path / "data/state.json"}
    assert set(files_of_data(tmp_path / "data")) == {"state.json", "data-00000.arrow", "shards/a.parquet"}


def test_a_model_is_what_loading_it_may_read(tmp_path):
    read = ["config.json", "generation_config.json", "model.safetensors", "chat_template.jinja", "qwen.tiktoken",
            "spiece.model", "additional_chat_templates/tools.jinja", "code/layers.py"]  # fmt: skip
    unread = [
        "README.md",
        "pytorch_model.bin",
        "original/params.json",
        "logo.png",
        ".cache/huggingface/x.json",
    ]
    for name in (*read, *unread):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert set(files_of_model(tmp_path)) == set(read)
