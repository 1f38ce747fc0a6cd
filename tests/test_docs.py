"""What the README and the docs say is true of the code."""

import importlib.util
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from klimb.cli.main import main
from klimb.reward.scorer import Scorer
from robot import Robot, free_port

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "docs" / "pictures"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


def links(page):
    """Paths of files and pictures, as Markdown and as HTML."""
    text = page.read_text()
    found = re.findall(r"\]\(([^)#]+)", text) + re.findall(r'(?:src|href)="([^"#]+)', text)
    return [link for link in found if not link.startswith("http")]


def anchors(page):
    """What GitHub makes of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(beginning):
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip().startswith(beginning):
                    yield pytest.param(line.strip(), id=f"{page.name}: {line.strip()[:40]}")


@pytest.mark.parametrize("command", list(commands("klimb ")))
def test_every_command_in_the_docs_is_one_of_klimbs(command, tmp_path, monkeypatch):
    """With options that exist; whether they do what they say, the tests of each verb show."""
    monkeypatch.chdir(tmp_path)
    for page in PAGES:
        for block in blocks(page, "toml"):
            Path(block.splitlines()[0].removeprefix("# ")).write_text(block)
    seen = []
    monkeypatch.setattr("klimb.cli.main._run", lambda verb: seen.append(verb) or 0)
    assert main(shlex.split(command)[1:]) == 0
    assert len(seen) == 1


@pytest.mark.parametrize("command", list(commands("klimb train")))
def test_every_training_command_in_the_docs_runs(command, model_folder, tmp_path, monkeypatch):
    """On a tiny model, for one short step, in a folder with the examples and the files that the docs show."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    for page in PAGES:
        for block in blocks(page, "toml"):
            name = block.splitlines()[0].removeprefix("# ")
            Path(name).write_text(block)
    for reward in re.findall(r"learned/\S+", command):
        scorer = Scorer.from_base(model_folder)
        scorer.members = (
            np.random.default_rng(0).normal(size=(4, scorer.head.weight.shape[1])).astype(np.float32)
        )
        scorer.save(Path(reward))
    arguments = shlex.split(command)[1:]
    quick = {"--model": str(model_folder), "--num-steps": "1", "--max-new-tokens": "3"}
    quick |= {"--num-trainable-layers": "1"} if "--num-trainable-layers" in arguments else {}
    for flag in quick:
        if flag in arguments:
            del arguments[arguments.index(flag) : arguments.index(flag) + 2]
    if "people" in arguments:
        monkeypatch.setattr("klimb.feedback.server.live._FAREWELL", 1.0)
        robot = Robot(free_port())
        robot.start()
        quick |= {"--people-port": str(robot.port), "--people-rater": "ann"}
    assert main([*arguments, *[part for pair in quick.items() for part in pair]]) == 0
    (report,) = tmp_path.glob("runs/*/report.html")
    assert report.is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page):
    for link in links(page):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_heading_meets_one(page):
    for link, anchor in re.findall(r"\]\((?!http)([^)#]*)#([^)]+)\)", page.read_text()):
        target = page.parent / link if link else page
        assert anchor in anchors(target), f"{link}#{anchor}"


def test_pictures_are_real_and_small():
    shown = [PICTURES / name for name in ("label.png", "report.png", "terminal.svg")]
    assert {(ROOT / link).resolve() for link in links(ROOT / "README.md") if "pictures" in link} == set(shown)
    for picture in shown:
        assert picture.read_bytes().startswith((b"\x89PNG", b"<svg"))
        assert picture.stat().st_size < 200_000
    drawn = (PICTURES / "terminal.svg").read_text()
    assert not re.search(r"(url\(|href=|src=|@import)\W*http", drawn), "a picture on GitHub may load nothing"
    assert str(Path.home()) not in drawn


def test_the_readmes_python_trains(model_folder, tmp_path, monkeypatch, capsys):
    """With a tiny model, two short steps, and one layer."""
    (code,) = blocks(ROOT / "README.md", "python")
    for said, quick in {
        '"HuggingFaceTB/SmolLM2-135M-Instruct"': repr(str(model_folder)),
        "num_trainable_layers=6": "num_trainable_layers=1",
        "num_steps=10": "num_steps=2",
        "max_new_tokens=24": "max_new_tokens=3",
    }.items():
        assert said in code
        code = code.replace(said, quick)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    exec(code, {})  # noqa: S102  our own page
    gain, page, *_ = re.search(r"^(\S+ ± \S+) (\S+)$", capsys.readouterr().out, flags=re.MULTILINE).groups()
    assert Path(page).is_file(), gain


def load(file):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_options_is_made_from_the_configuration():
    options = load(ROOT / "tools" / "options.py")
    assert options.PAGE.read_text() == options.render(), "run make format"


def test_the_keyword_arguments_are_made_from_the_configuration():
    keywords = load(ROOT / "tools" / "keywords.py")
    assert keywords.FILE.read_text() == keywords.render(), "run make format"


def test_the_table_of_objectives_is_made_from_the_presets():
    objectives = load(ROOT / "tools" / "objectives.py")
    assert objectives.PAGE.read_text() == objectives.render(), "run make format"


def test_the_example_reward_by_hand():
    brevity = load(ROOT / "examples" / "brevity.py")
    # "to be." has words of 2 and 3 characters: 4.5 − 2.5 + 1; "unlikely" is one of 8: 4.5 − 8.
    assert brevity.plain_words(["to be.", "unlikely", " "]) == [3.0, -3.5, -5.0]
