"""The summary and the page that a person reads."""

import json
import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from klimb import KlimbError
from klimb.config.train import TrainConfig
from klimb.feedback.records import Answer, Candidate
from klimb.feedback.store.store import Store
from klimb.training.evaluate.summary import summarise
from klimb.training.report.figures import running_mean
from klimb.training.report.report import write_report
from klimb.training.storage.folder import RunFolder

pytestmark = pytest.mark.usefixtures("drawn_figures")


def evaluation(when, prompt_index, reward, *, kl=0.0, completion="text", prompt=None):
    return {
        "when": when,
        "prompt_index": prompt_index,
        "prompt": prompt or f"prompt {prompt_index}",
        "completion": completion,
        "reward": reward,
        "rewards": {"r": reward},
        "kl": kl,
        "length": 4,
        "finish_reason": "end",
    }


EVALUATIONS = [
    evaluation("before", 0, 0.0),
    evaluation("before", 0, 1.0),
    evaluation("before", 1, 0.5, prompt="<b>& co"),
    evaluation("before", 1, 0.5),
    evaluation("after", 0, 1.0, kl=2.0),
    evaluation("after", 0, 2.0, kl=4.0),
    evaluation("after", 1, 0.5, kl=1.0, completion="</td><script>alert(1)</script>"),
    evaluation("after", 1, 1.5, kl=1.0),
]


def test_the_summary_by_hand():
    # Prompt means: before ½, ½; after 3/2, 1; gains 1, ½; KL 3, 1.
    summary = summarise(EVALUATIONS, are_held_out=True)
    assert (summary.num_prompts, summary.completions_per_prompt) == (2, 2)
    assert (summary.before.mean, summary.before.half_width) == (0.5, 0.0)
    assert summary.after.mean == 1.25
    assert summary.gain.mean == 0.75
    # The standard deviation of (1, ½) is ½/√2; divided by √2 prompts, times 1.96.
    assert summary.gain.half_width == pytest.approx(1.96 * 0.5 / 2)
    assert summary.kl.mean == 2.0
    assert [example.reward_after for example in summary.examples] == [1.0, 0.5]


def test_one_prompt_has_no_interval():
    rows = [evaluation("before", 0, 0.0), evaluation("after", 0, 1.0)]
    assert math.isnan(summarise(rows, are_held_out=True).gain.half_width)


def test_a_running_mean_by_hand():
    # Of 1, 2, 3; 1 to 4; 1, 2, 3, 4, 9; 2, 3, 4, 9, 11; 3, 4, 9, 11; 4, 9, 11.
    assert running_mean([1, 2, 3, 4, 9, 11]) == [2, 2.5, 3.8, 5.8, 6.75, 8]


@pytest.fixture
def folder(tmp_path):
    """A run's folder with two steps and evaluations, as `train` writes it."""
    config = TrainConfig.from_dict(
        {
            "model": "m",
            "prompts": "p",
            "reward": ["vader"],
            "out": str(tmp_path / "run"),
            "eval_prompts": None,
        }
    )
    folder = RunFolder.create(tmp_path / "run", config.to_dict())
    for step in range(2):
        row = {"step": step, "reward": 0.1 * step, "kl": float(step), "entropy": 2.0, "length": 5.0}
        row |= {"seconds": {"sampling": 1.0, "update": 2.0}, "completions_per_second": 3.0}
        folder.append("metrics", [row | {"peak_memory_bytes": 10**9}])
    return folder


class Page(HTMLParser):
    """The tags of a page and what they load."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.loaded = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loaded += [value for name, value in attrs if name in ("src", "href", "xlink:href")]


def test_the_report_stands_alone_and_escapes_what_models_and_people_wrote(folder):
    folder.append("evaluations", EVALUATIONS)
    text = write_report(folder).read_text()
    page = Page(text)
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert all(link.startswith("#") for link in page.loaded)
    assert not re.search(r"url\((?!#)", text)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "0.50 → 1.25" in text
    assert "+0.75 ± 0.49" in text
    assert page.tags.count("figure") == 6
    assert "maximise  E_π[r(y)] − 0.05 · KL(π‖π_ref)" in text


def test_every_figure_is_a_well_formed_picture_in_the_pages_colours(folder):
    folder.append("evaluations", EVALUATIONS)
    pictures = re.findall(r"<svg.*?</svg>", write_report(folder).read_text(), flags=re.DOTALL)
    assert len(pictures) == 5
    for picture in pictures:
        ElementTree.fromstring(picture)  # noqa: S314  our own
        assert "currentColor" in picture
        assert "#010203" not in picture
    ids = [name for picture in pictures for name in set(re.findall(r'clipPath id="([^"]+)"', picture))]
    assert len(ids) == len(set(ids))


def test_the_report_of_an_unfinished_run_has_its_curves(folder):
    folder.append("evaluations", EVALUATIONS[:4])
    text = write_report(folder).read_text()
    assert "the run is not finished" in text
    assert "side by side" not in text


def test_judging_that_was_cut_short_counts_as_unfinished(folder):
    folder.append("evaluations", EVALUATIONS[:6])
    assert "the run is not finished" in write_report(folder).read_text()


def test_a_last_line_that_was_cut_off_is_passed_over(folder):
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "rew')
    assert [row["step"] for row in folder.read("metrics")] == [0, 1]


def test_options_that_cannot_be_read_are_named(folder):
    (folder.path / "config.json").write_text('{"lr": 1}')
    with pytest.raises(KlimbError, match=r"config\.json: not options of this version of klimb"):
        write_report(folder)
    (folder.path / "config.json").write_text("{")
    with pytest.raises(KlimbError, match=r"config\.json: not JSON"):
        write_report(folder)


def test_a_report_is_made_again_to_the_same_bytes(folder):
    folder.append("evaluations", EVALUATIONS)
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(KlimbError, match="not the folder of a run"):
        RunFolder.open(tmp_path)


def test_a_broken_line_is_named(folder):
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write("{\n")
    with pytest.raises(KlimbError, match=r"metrics\.jsonl:3: not JSON"):
        write_report(folder)


def test_lines_are_never_written_with_nan(folder):
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.append("metrics", [{"reward": float("nan")}])
    assert all(json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines())


def test_the_report_of_a_live_run_names_who_answers_by_place(tmp_path):
    options = {
        "model": "m",
        "prompts": "p",
        "reward": ["people"],
        "out": str(tmp_path / "run"),
        "eval_prompts": None,
    }
    folder = RunFolder.create(tmp_path / "run", TrainConfig.from_dict(options).to_dict())
    row = {"step": 0, "reward": 0.5, "kl": 0.0, "entropy": 2.0, "length": 5.0, "completions_per_second": 3.0}
    folder.append("metrics", [row | {"seconds": {"sampling": 1.0}, "peak_memory_bytes": 10**9}])
    folder.append("evaluations", [])
    assert "answer 1" not in write_report(folder).read_text()  # people have not said anything yet
    with Store.open(tmp_path / "run" / "people.db") as store:
        store.add_pairs((f"p{n}", Candidate(f"a{n}", {}), Candidate(f"b{n}", {})) for n in range(30))
        for number in range(30):
            store.judge(Answer(number + 1, "e<v>e", "first", f"key-{number:06}", shown_left="first"))
    assert "e&lt;v&gt;e prefers answer 1 in 30 of 30 pairs" in write_report(folder).read_text()
