"""A run that is interrupted and resumed ends as if it had not been."""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest

from klimb import KlimbError
from klimb.cli.main import main
from klimb.config.train import TrainConfig
from klimb.errors import RunFolderError
from klimb.io import atomic
from klimb.reward.scorer import Scorer
from klimb.rl.metrics import FORMER
from klimb.training.report.report import write_report
from klimb.training.storage.checkpoint import seal
from klimb.training.storage.folder import RunFolder

# A judge of evaluations, which have 12 completions, by how many steps had been taken.
BY_STEPS = """
from pathlib import Path

def judge(completions, **_):
    if len(completions) != 12:
        return [None] * len(completions)
    file = Path({run!r}) / "metrics.jsonl"
    num_steps = len(file.read_text().splitlines()) if file.exists() else 0
    return [{values}[num_steps]] * 12
"""


def test_a_resumed_run_ends_in_the_same_bits(plain, cut, run, essence):
    assert RunFolder.open(cut.out).checkpoint_steps() == [2, 4]
    assert len(RunFolder.open(cut.out).read("metrics")) == 5
    screen = run(cut, resume=True)
    assert f"Resuming {cut.out} after 4 of 6 steps" in screen
    assert essence(cut.out) == essence(plain.out)
    assert [row["step"] for row in RunFolder.open(cut.out).read("metrics")] == [0, 1, 2, 3, 4, 5]


@pytest.mark.slow
def test_a_run_that_goes_back_to_an_older_checkpoint_ends_in_the_same_bits(plain, cut, run, essence):
    screen = run(cut, resume=True, from_step=2)
    assert f"Resuming {cut.out} after 2 of 6 steps" in screen
    assert essence(cut.out) == essence(plain.out)
    run(cut, resume=True, from_step=4)  # a finished run goes back, too
    assert essence(cut.out) == essence(plain.out)


@pytest.mark.slow
def test_a_run_with_the_metrics_names_of_0_1_is_read_and_resumed(plain, cut, run, essence):
    former = {present: name for name, present in FORMER.items()}
    assert set(former.values()) == {"ended", "same", "failed"}

    def rename(row):
        return {former.get(name, name): value for name, value in row.items()}

    lines = cut.out / "metrics.jsonl"
    rows = [rename(json.loads(line)) for line in lines.read_text().splitlines()]
    assert {"ended", "same", "failed"} <= set(rows[0])
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step in (2, 4):
        file = cut.out / f"checkpoints/step-{step:06d}/state.json"
        state = json.loads(file.read_text())
        guards = state["remembered"]["guards"]
        guards["steps"] = [rename(row) for row in guards["steps"]]
        assert "same" in guards["steps"][0]
        file.write_text(json.dumps(state | {"seal": seal(state)}))
    run(cut, resume=True)
    got, wanted = essence(cut.out), essence(plain.out)
    assert got.pop("metrics") != wanted.pop("metrics")
    assert got == wanted
    kept, expected = (RunFolder.open(config.out).read("metrics") for config in (cut, plain))
    for name in ("reward", "eos_rate", "duplicate_rate", "reward_failures", "guards"):
        assert [row[name] for row in kept] == [row[name] for row in expected]
    assert write_report(RunFolder.open(cut.out)).is_file()
    assert "same" in json.loads(lines.read_text().splitlines()[0])  # what is written stays as it is


@pytest.mark.slow
def test_a_run_goes_back_with_another_beta(make_options, run):
    config = make_options(num_steps=3, checkpoint_every=1, keep_checkpoints=None)
    run(config)
    before = RunFolder.open(config.out).read("metrics")
    screen = run(replace(config, beta=0.5), resume=True, from_step=1)
    assert f"beta: {config.beta} → 0.5 (the objective changes from here on)" in screen
    after = RunFolder.open(config.out).read("metrics")
    assert [row["beta"] for row in after] == [config.beta, 0.5, 0.5]
    assert (after[0]["reward"], after[1]["reward"]) == (before[0]["reward"], before[1]["reward"])
    assert after[1]["grad_norm"] != before[1]["grad_norm"]
    run(replace(config, beta=0.2, lr=1e-3), resume=True, from_step=1)
    page = write_report(RunFolder.open(config.out)).read_text()
    assert f"Until step 1 with other options: beta {config.beta}, lr {config.lr}." in page  # never 0.5
    assert page.count("with other options") == 1


SETTINGS = {
    "LoRA": {"lora_rank": 2, "lr_schedule": "linear"},
    "the last layer in bfloat16, in micro-batches": {
        "num_trainable_layers": 1,
        "precision": "bfloat16",
        "micro_batch_size": 4,
    },
    "LoRA in bfloat16": {"lora_rank": 2, "precision": "bfloat16"},
    "plain ascent": {"optimiser": "sgd", "lr": 0.5, "baseline": "group_normalised"},
    "another order of the prompts": {"seed": 7, "prompts_per_step": 4},
}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(changes, id=name, marks=() if name == "LoRA" else pytest.mark.slow)
        for name, changes in SETTINGS.items()
    ],
)
def test_a_run_with_other_options_resumes_to_the_same_bits_too(changes, make_options, run, essence, tmp_path):
    changes = {"num_steps": 3, "eval_completions_per_prompt": 1, **changes}
    whole, cut = make_options(**changes), make_options(out=tmp_path / "cut", **changes)
    run(whole)
    run(cut, cut_at=2)
    run(cut, resume=True)
    assert essence(cut.out) == essence(whole.out)


def test_a_run_on_an_ensemble_with_caution_resumes_to_the_same_bits(
    make_options, run, essence, tmp_path, model_folder
):
    scorer = Scorer.from_base(model_folder)
    scorer.members = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)  # 16 numbers of a text
    scorer.save(tmp_path / "ensemble")
    changes = {"num_steps": 3, "reward": (str(tmp_path / "ensemble"),), "uncertainty_penalty": 0.5}
    whole, cut = make_options(**changes), make_options(out=tmp_path / "cut", **changes)
    run(whole)
    assert len({row["reward"] for row in RunFolder.open(whole.out).read("completions")}) > 6
    run(cut, cut_at=2)
    run(cut, resume=True)
    assert essence(cut.out) == essence(whole.out)


def test_the_kl_target_moves_beta_from_step_to_step_and_metrics_show_it(plain):
    metrics = RunFolder.open(plain.out).read("metrics")
    beta = 0.05
    for row in metrics:
        assert row["beta"] == beta
        beta *= 1 + max(-0.2, min(0.2, row["kl"] / 0.5 - 1)) * 6 / 30
    assert len({row["beta"] for row in metrics}) == 6


@pytest.fixture(scope="module")
def judged(options_in, model_folder, run, tmp_path_factory):
    """A run on a learned reward and a function, with a judge by which the best is kept."""
    folder = tmp_path_factory.mktemp("judged")
    Scorer.from_base(model_folder).save(folder / "learned")
    judge = f"{folder / 'rules.py'}:measure"
    config = options_in(
        folder,
        reward=(str(folder / "learned"), f"{folder / 'rules.py'}:letters"),
        reward_weights=(1.0, 0.5),
        judges=(judge,),
        keep_best=judge,
        eval_every=2,
        num_steps=5,
        checkpoint_every=2,
        keep_checkpoints=1,
        completions_per_prompt=4,
        lr=0.02,
    )
    run(config)
    return config


@pytest.mark.parametrize(
    "cut_at", [pytest.param(0, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)]
)
def test_a_resumed_run_keeps_the_same_best(cut_at, judged, run, essence, tmp_path):
    cut = replace(judged, out=tmp_path / "run")
    run(cut, cut_at=cut_at)
    run(cut, resume=True)
    assert essence(cut.out) == essence(judged.out)


@pytest.fixture
def make_by_steps(make_options, tmp_path):
    """A run whose evaluations are found so good after so many steps."""

    def make(values, **changes):
        (tmp_path / "by_steps.py").write_text(BY_STEPS.format(values=values, run=str(tmp_path / "run")))
        judge = f"{tmp_path / 'by_steps.py'}:judge"
        return make_options(judges=(judge,), keep_best=judge, eval_every=1, **changes)

    return make


def test_a_run_that_ran_out_of_patience_takes_no_more_steps(make_by_steps, run, monkeypatch):
    config = make_by_steps([0, 3, 1, 2, 9, 9], patience=2, num_steps=5)

    def fail(*_):
        raise OSError("no room")

    with monkeypatch.context() as patch:
        patch.setattr("klimb.policy.policy.Policy.save", fail)
        with pytest.raises(RunFolderError, match="no room"):
            run(config)
    screen = run(config, resume=True)
    assert "after 3 of 5 steps: 2 evaluations in a row brought nothing better" in screen
    folder = RunFolder.open(config.out)
    assert len(folder.read("metrics")) == 3
    assert (folder.read_best().step, folder.read_best().was_stopped) == (1, True)
    assert "the run is finished, after 3 steps; nothing is changed" in run(config, resume=True)


@pytest.mark.slow
def test_a_damaged_best_checkpoint_is_passed_over_and_made_again(make_by_steps, run, essence):
    config = make_by_steps([0, 1, 5, 2, 3, 3, 3], num_steps=6, checkpoint_every=1, keep_checkpoints=None)
    run(config)
    expected = essence(config.out)
    assert RunFolder.open(config.out).read_best().step == 2
    shutil.rmtree(config.out)
    run(config, cut_at=4)
    file = config.out / "checkpoints" / "step-000002" / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    screen = run(config, resume=True)
    assert screen.count("passed over: ") == 3
    assert f"Resuming {config.out} after 1 of 6 steps" in screen
    assert essence(config.out) == expected


class Photographer:
    """Keeps copies of a folder as it was at each moment at which a crash could have left it so."""

    def __init__(self, folder, album):
        self.folder, self.album, self.number = folder, album, 0

    def __call__(self, function):
        def call(*arguments, **options):
            self.shoot()
            found = function(*arguments, **options)
            self.shoot()
            return found

        return call

    def shoot(self):
        if (self.folder / "config.json").exists():
            shutil.copytree(self.folder, self.album / f"{self.number:03d}")
            self.number += 1


@pytest.fixture
def photographs(judged, run, monkeypatch, tmp_path):
    """Every state on the disk that a run goes through, and the run."""
    config = replace(judged, out=tmp_path / "run")
    camera = Photographer(config.out, tmp_path / "album")
    with monkeypatch.context() as patch:
        patch.setattr(atomic, "_sync_file", camera(atomic._sync_file))
        patch.setattr(atomic, "_sync_folder", camera(atomic._sync_folder))
        patch.setattr("klimb.training.storage.folder.append_text", camera(atomic.append_text))
        patch.setattr(shutil, "rmtree", camera(shutil.rmtree))
        run(config)
    return config, sorted((tmp_path / "album").iterdir())


def resume_from(photograph, config, run, essence):
    shutil.rmtree(config.out)
    shutil.copytree(photograph, config.out)
    run(config, resume=True)
    hidden = [path for path in config.out.rglob(".*") if not path.is_relative_to(config.out / "model")]
    assert hidden == [], photograph.name
    return essence(config.out)


@pytest.mark.slow
def test_a_run_resumes_to_the_same_bits_from_states_that_a_crash_leaves(photographs, run, essence):
    config, album = photographs
    expected = essence(config.out)
    assert len(album) > 60
    for photograph in album[5 :: len(album) // 5]:
        assert resume_from(photograph, config, run, essence) == expected, photograph.name


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_resumes_to_the_same_bits_from_every_state_that_a_crash_leaves(photographs, run, essence):
    config, album = photographs
    expected = essence(config.out)
    for photograph in album:
        assert resume_from(photograph, config, run, essence) == expected, photograph.name


@pytest.mark.parametrize("from_step", [4, pytest.param(2, marks=pytest.mark.slow)])
def test_a_line_that_was_torn_is_written_again(from_step, plain, cut, run, essence):
    for name in ("metrics", "completions"):
        file = cut.out / f"{name}.jsonl"
        file.write_text(file.read_text()[:-9])
    if from_step == 2:
        shutil.rmtree(cut.out / "checkpoints" / "step-000004")
    run(cut, resume=True)
    assert essence(cut.out) == essence(plain.out)


@pytest.mark.slow
def test_a_run_without_a_checkpoint_starts_again_in_its_folder(plain, run, essence, tmp_path):
    cut = replace(plain, out=tmp_path / "cut")
    run(cut, cut_at=0)
    assert (cut.out / "metrics.jsonl").read_text()
    screen = run(cut, resume=True)
    assert f"Resuming {cut.out} from the beginning" in screen
    assert essence(cut.out) == essence(plain.out)


def test_a_start_that_was_cut_off_before_it_wrote_its_options_is_no_hindrance(make_options, run):
    config = make_options(num_steps=1)
    config.out.mkdir()
    (config.out / "fingerprints.json").write_text("{}")
    (config.out / ".config.json.ab12cd_4").write_text("{")
    run(config)
    assert (config.out / "report.html").is_file()


@pytest.fixture
def finished(plain, tmp_path):
    """The folder of the run that came to its end, for one test alone."""
    shutil.copytree(plain.out, tmp_path / "run")
    return replace(plain, out=tmp_path / "run")


def test_a_finished_run_says_so_and_is_left_as_it_is(finished, tree, capsys):
    before = tree(finished.out)
    assert main(["train", "--resume", str(finished.out)]) == 0
    shown = capsys.readouterr().out.replace("\n", " ")
    assert f"{finished.out}: the run is finished, after 6 steps; nothing is changed" in shown
    assert tree(finished.out) == before


@pytest.mark.parametrize("missing", ["model", "report.html", "after"])
def test_what_a_finished_run_lacks_is_made(missing, plain, finished, run, essence):
    if missing == "after":
        file = finished.out / "evaluations.jsonl"
        file.write_text("".join(file.read_text().splitlines(keepends=True)[:-3]))
    elif missing == "model":
        shutil.rmtree(finished.out / "model")
    else:
        (finished.out / "report.html").unlink()
    run(finished, resume=True)
    assert essence(finished.out) == essence(plain.out)
    assert (finished.out / "report.html").is_file()


def test_a_run_is_made_longer_and_equals_one_that_was_long_from_the_start(
    make_options, run, essence, tmp_path
):
    short, long = make_options(num_steps=2), make_options(num_steps=3, out=tmp_path / "long")
    run(short)
    run(long)
    assert main(["train", "--resume", str(short.out), "--num-steps", "3"]) == 0
    assert essence(short.out) == essence(long.out)
    options = json.loads((short.out / "config.json").read_text())
    (entry,) = options.pop("resumed")
    assert (entry["step"], entry["changes"]) == (2, {"num_steps": [2, 3]})
    assert entry["time"].endswith("+00:00")
    assert TrainConfig.from_dict(options).num_steps == 3


def test_the_command_line_resumes_with_the_options_of_the_run(make_options, run, essence, tmp_path):
    changes = {
        "judges": ("vader",),
        "adam_betas": (0.8, 0.9),
        "max_grad_norm": None,
        "reward_weights": (-0.5,),
    }
    whole, cut = (make_options(out=tmp_path / name, num_steps=3, **changes) for name in ("whole", "cut"))
    run(whole)
    run(cut, cut_at=2)
    assert main(["train", "--resume", str(cut.out)]) == 0
    assert essence(cut.out) == essence(whole.out)
    assert TrainConfig.from_dict(RunFolder.open(cut.out).read_config()) == replace(cut, num_slices=1)
    assert RunFolder.open(cut.out).read_resumed()[0]["changes"] == {}


def test_a_run_that_fails_is_resumed_once_its_reward_is_mended(make_options, run, essence, tmp_path):
    file = tmp_path / "fragile.py"
    healthy = "def f(completions, **_):\n    return [float(len(c)) for c in completions]\n"
    file.write_text(healthy)
    whole = make_options(reward=(f"{file}:f",), out=tmp_path / "whole")
    run(whole)
    file.write_text(
        "calls = 0\ndef f(completions, **_):\n    global calls\n    calls += 1\n"
        "    if calls >= 5:\n        raise ValueError('no more')\n    return [float(len(c)) for c in completions]\n"
    )
    cut = make_options(reward=(f"{file}:f",))
    with pytest.raises(KlimbError, match="no more"):
        run(cut)
    file.write_text(healthy)
    screen = run(cut, resume=True, accept=[f"{file}:f"])
    assert f"Resuming {cut.out} after 3 of 4 steps" in screen
    assert essence(cut.out) == essence(whole.out)


def test_leftovers_of_a_crash_are_removed_and_nothing_else(cut, run):
    for name in (".model.ab_12cd3", ".report.html.0123abcd", "checkpoints/.step-000006.zzzzzzzz"):
        (cut.out / name).mkdir()
        (cut.out / name / "part").write_text("x")
    for name in (".notes", ".notes.ab_12cd3", "model.old"):
        (cut.out / name).write_text("mine")
    run(cut, resume=True)
    names = {path.name for path in cut.out.iterdir() if path.name.startswith(".") or path.name == "model.old"}
    assert names == {".notes", ".notes.ab_12cd3", "model.old"}
    assert sorted(os.listdir(cut.out / "checkpoints")) == ["step-000002", "step-000004", "step-000006"]
