"""A reward that is climbed too far: the judge turns over, the run stops, and the best weights are the result."""

import io
import json
import shutil

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from klimb import KlimbError
from klimb.config.train import TrainConfig
from klimb.errors import RunFolderError
from klimb.reward.reward import WeightedSum
from klimb.training.report.console import Display
from klimb.training.report.report import write_report
from klimb.training.run import train
from klimb.training.setup import load_policy
from klimb.training.storage.checkpoints import Checkpoints
from klimb.training.storage.folder import RunFolder
from klimb.training.trainer import Trainer

# The reward counts a letter; the judge likes one of them in each completion, and thinks less of any more.
RULES = """
def letters(completions, **_):
    return [c.count("e") for c in completions]

def measure(completions, **_):
    return [-((c.count("e") - 1) ** 2) for c in completions]

def distaste(completions, **_):
    return [-c.count("e") for c in completions]

def length(completions, **_):
    return [c.count("e") + 0.1 * len(c) for c in completions]
"""

# A judge of evaluations, which have 12 completions: so much for the first, so much for the second, and so on.
SCRIPT = """
num_evaluations = 0
def judge(completions, **_):
    global num_evaluations
    if len(completions) != 12 and num_evaluations <= len({values}):
        return [None] * len(completions)
    num_evaluations += len(completions) == 12
    return [{values}[num_evaluations - 1]] * 12
"""


def options(model_folder, prompts_file, folder, **changes):
    return TrainConfig(
        **{
            "model": str(model_folder),
            "prompts": prompts_file,
            "reward": (f"{folder / 'rules.py'}:letters",),
            "out": folder / "run",
            "prompts_per_step": 2,
            "completions_per_prompt": 3,
            "eval_completions_per_prompt": 2,
            "max_new_tokens": 5,
            "beta": 0.0,
            "max_kl": 1e6,  # so that the KL is measured
            "lr": 0.02,
            "checkpoint_every": 100,
            **changes,
        }
    )


@pytest.fixture
def make_config(model_folder, prompts_file, tmp_path):
    (tmp_path / "rules.py").write_text(RULES)

    def make(**changes):
        return options(model_folder, prompts_file, tmp_path, **changes)

    return make


@pytest.fixture
def scripted(tmp_path):
    """A judge whose opinion of each evaluation is given."""

    def write(values, before=""):
        (tmp_path / "script.py").write_text(SCRIPT.replace("{values}", repr(values)) + before)
        return f"{tmp_path / 'script.py'}:judge"

    return write


def run(config):
    screen = io.StringIO()
    result = train(config, Display(Console(file=screen, width=250)))
    return result, screen.getvalue()


def weights_of(model):
    return AutoModelForCausalLM.from_pretrained(model).state_dict()


def assert_same(weights, others):
    assert set(weights) == set(others)
    assert all(torch.equal(weight, others[name]) for name, weight in weights.items())


def rows_of(folder, when, without=("when",)):
    rows = [row for row in folder.read("evaluations") if row["when"] == when]
    return [{key: value for key, value in row.items() if key not in without} for row in rows]


@pytest.fixture(scope="module")
def turned(model_folder, tmp_path_factory):
    """A run whose reward hurts the judge after a while."""
    folder = tmp_path_factory.mktemp("turned")
    (folder / "rules.py").write_text(RULES)
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": word}) + "\n" for word in ("one", "two", "three", "x")))
    judge = f"{folder / 'rules.py'}:measure"
    config = options(
        model_folder,
        prompts,
        folder,
        judges=(judge,),
        eval_every=4,
        keep_best=judge,
        patience=2,
        num_steps=60,
        lr=0.04,
        completions_per_prompt=16,
        eval_completions_per_prompt=16,
        checkpoint_every=4,
        keep_checkpoints=None,
    )
    return config, *run(config)


def test_the_judge_turns_over_while_the_reward_climbs_and_the_run_stops(turned):
    config, result, _ = turned
    choice = result.folder.read_best()
    assert 0 < choice.step < choice.last.step < config.num_steps
    assert choice.was_stopped
    assert choice.num_since == 2
    assert choice.last.step == choice.step + 2 * config.eval_every
    assert choice.best.mean.mean == max(candidate.mean.mean for candidate in choice.candidates)
    assert choice.last.difference.mean < 0
    assert len(result.folder.read("metrics")) == choice.last.step
    assert result.summary.best.step == choice.step

    def reward_at(when):
        rows = rows_of(result.folder, when)
        return sum(row["reward"] for row in rows) / len(rows)

    assert (
        reward_at("before") < reward_at(f"step-{choice.step:06d}") < reward_at(f"step-{choice.last.step:06d}")
    )


def test_the_policy_is_judged_at_every_evaluation_on_all_prompts(turned):
    config, result, _ = turned
    rows = result.folder.read("evaluations")
    last = result.summary.best.last.step
    steps = list(range(config.eval_every, last + 1, config.eval_every))
    expected = ["before", *[f"step-{step:06d}" for step in steps], "after"]
    assert list(dict.fromkeys(row["when"] for row in rows)) == expected
    for when, step in zip(expected, [0, *steps, result.summary.best.step], strict=True):
        found = [row for row in rows if row["when"] == when]
        assert len(found) == 4 * 16
        assert {row["step"] for row in found} == {step}


def test_the_model_is_the_best_one_bit_for_bit(turned, tmp_path):
    config, result, _ = turned
    step = result.summary.best.step
    saved = weights_of(result.folder.model)
    assert_same(saved, load_file(result.folder.checkpoint(step) / "weights.safetensors"))
    last = load_file(result.folder.checkpoint(result.summary.best.last.step) / "weights.safetensors")
    assert not torch.equal(saved["lm_head.weight"], last["lm_head.weight"])

    plain = {"eval_every": None, "keep_best": None, "patience": None, "num_steps": step}
    uninterrupted, _ = run(TrainConfig(**(vars(config) | plain | {"out": tmp_path / "plain"})))
    assert_same(saved, load_file(uninterrupted.folder.checkpoint(step) / "weights.safetensors"))
    assert_same(saved, weights_of(uninterrupted.folder.model))


def test_what_is_judged_after_is_what_was_the_best(turned):
    _, result, _ = turned
    after = rows_of(result.folder, "after")
    assert after == rows_of(result.folder, f"step-{result.summary.best.step:06d}")
    judge = next(iter(result.summary.judges.values()))
    assert judge.after == result.summary.best.best.mean


def test_the_checkpoints_are_those_that_are_due_the_best_and_the_last(turned):
    config, result, _ = turned
    choice = result.summary.best
    due = set(range(config.checkpoint_every, choice.last.step + 1, config.checkpoint_every))
    found = {int(path.name.removeprefix("step-")) for path in (config.out / "checkpoints").iterdir()}
    assert found == due | {choice.step, choice.last.step}


def test_the_screen_has_a_line_an_evaluation_and_says_what_is_kept_and_why(turned):
    config, result, screen = turned
    choice = result.summary.best
    lines = [line for line in screen.splitlines() if line.startswith("evaluated after")]
    assert len(lines) == len(choice.candidates)
    assert f"evaluated after {choice.step} steps:  reward +" in screen
    stars = [line for line in lines if line.endswith("★ the best so far")]
    assert stars[-1].startswith(f"evaluated after {choice.step} steps:")
    assert "measure " in stars[-1]
    assert "KL " in stars[-1]
    for sentence in choice.sentences(config.num_steps):
        assert sentence in screen
    assert f"The run stopped after {choice.last.step} of 60 steps: 2 evaluations in a row" in screen
    heads = next(line for line in screen.splitlines() if "before" in line and "change" in line)
    assert f" after {choice.step} steps " in heads


def test_the_report_draws_the_evaluations_and_says_what_is_kept_and_why(turned):
    config, result, _ = turned
    choice = result.summary.best
    text = result.folder.report.read_text()
    for sentence in choice.sentences(config.num_steps):
        assert sentence in text
    assert "<h3>Reward and the judge rules.py:measure along the run</h3>" in text
    assert "<h3>The judge rules.py:measure against distance</h3>" not in text
    assert f"Dotted: the weights that are kept, step {choice.step}." in text
    assert "A mean that was chosen for being the highest flatters a little." in text
    assert write_report(result.folder).read_text() == text


@pytest.mark.usefixtures("drawn_figures")
def test_the_step_that_is_kept_is_marked_in_the_figures(turned, tmp_path):
    _, result, _ = turned
    shutil.copytree(result.folder.path, tmp_path / "run")
    text = write_report(RunFolder.open(tmp_path / "run")).read_text()
    assert f">step {result.summary.best.step}</text>" in text


def test_an_unfinished_run_has_its_evaluations_drawn(turned, tmp_path):
    _, result, _ = turned
    shutil.copytree(result.folder.path, tmp_path / "run")
    rows = [row for row in result.folder.read("evaluations") if row["when"] != "after"]
    (tmp_path / "run" / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    text = write_report(RunFolder.open(tmp_path / "run")).read_text()
    assert "the run is not finished" in text
    assert "<h3>Reward and the judge rules.py:measure along the run</h3>" in text


def test_a_start_that_nothing_beats_is_kept_and_that_is_said(make_config, tmp_path, model_folder):
    judge = f"{tmp_path / 'rules.py'}:distaste"
    config = make_config(
        judges=(judge,), keep_best=judge, eval_every=4, num_steps=8, completions_per_prompt=24
    )
    result, screen = run(config)
    assert result.summary.best.step == 0
    assert not result.summary.best.was_stopped
    assert_same(weights_of(result.folder.model), weights_of(model_folder))
    assert result.summary.kl.mean == 0
    assert result.summary.gain.mean == 0
    assert rows_of(result.folder, "after") == rows_of(result.folder, "before")
    for text in (screen, result.folder.report.read_text()):
        assert "Nothing was better than the start by the judge rules.py:distaste" in text
        assert "the weights are kept as they were before training" in text


@pytest.mark.slow
def test_the_last_weights_are_not_judged_twice(make_config, scripted):
    judge = scripted([0, 1, 2])
    result, screen = run(make_config(judges=(judge,), keep_best=judge, eval_every=2, num_steps=3))
    assert [candidate.step for candidate in result.summary.best.candidates] == [0, 2, 3]
    assert result.summary.best.step == 3
    assert "Evaluating the model after training" not in screen
    assert rows_of(result.folder, "after") == rows_of(result.folder, "step-000003")


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"lora_rank": 2}, marks=pytest.mark.slow),
        pytest.param({"precision": "bfloat16"}, marks=pytest.mark.slow),
        pytest.param({"precision": "bfloat16", "lora_rank": 2}, marks=pytest.mark.slow),
    ],
    ids=["an adapter", "bfloat16", "an adapter in bfloat16"],
)
def test_a_policy_that_was_restored_samples_as_it_did_then(changes, make_config, scripted, tmp_path):
    judge = scripted([0, 1, 0.5, 0.5, 7])
    config = make_config(
        judges=(judge,),
        keep_best=judge,
        eval_every=1,
        num_steps=3,
        reward=(f"{tmp_path / 'rules.py'}:length",),
        **changes,
    )
    result, _ = run(config)
    assert result.summary.best.step == 1
    ignored = ("when", "rewards")
    best = rows_of(result.folder, "step-000001", ignored)
    assert rows_of(result.folder, "after", ignored) == best
    assert rows_of(result.folder, "step-000003", ("step", *ignored)) != rows_of(
        result.folder, "step-000001", ("step", *ignored)
    )


def test_patience_at_the_last_step_is_no_stop(make_config, scripted):
    judge = scripted([1, 0, 0, 0])
    result, screen = run(make_config(judges=(judge,), keep_best=judge, eval_every=1, patience=2, num_steps=2))
    assert result.summary.best.step == 0
    assert not result.summary.best.was_stopped
    assert "The run stopped" not in screen


@pytest.mark.slow
def test_a_new_best_restores_patience(make_config, scripted):
    judge = scripted([1, 0, 2, 0, 0, 0])
    result, _ = run(make_config(judges=(judge,), keep_best=judge, eval_every=1, patience=2, num_steps=9))
    assert result.summary.best.step == 2
    assert result.summary.best.last.step == 4
    assert result.summary.best.was_stopped


@pytest.mark.slow
def test_evaluations_along_a_run_do_not_change_it(make_config, tmp_path):
    plain, _ = run(make_config(num_steps=5, out=tmp_path / "plain"))
    watched, screen = run(make_config(num_steps=5, eval_every=2))
    assert_same(weights_of(plain.folder.model), weights_of(watched.folder.model))
    whens = list(dict.fromkeys(row["when"] for row in watched.folder.read("evaluations")))
    assert whens == ["before", "step-000002", "step-000004", "step-000005", "after"]
    assert rows_of(watched.folder, "after") == rows_of(plain.folder, "after")
    assert watched.summary == plain.summary
    assert not (watched.folder.path / "best.json").exists()
    assert "<h3>The reward along the run</h3>" in watched.folder.report.read_text()
    assert "★" not in screen


def test_the_best_so_far_outlives_a_run_that_fails(make_config, scripted):
    judge = scripted([0, 1, 0])  # and no fourth opinion
    config = make_config(judges=(judge,), keep_best=judge, eval_every=1, num_steps=5)
    with pytest.raises(KlimbError, match="raised IndexError") as caught:
        run(config)
    folder = RunFolder.open(config.out)
    assert caught.value.__notes__ == [
        f"steps taken: 3; what was written stays in {config.out}",
        f"the last checkpoint is of step 3; resume from there with: klimb train --resume {config.out}",
    ]
    assert folder.read_best().step == 1
    assert not folder.model.exists()
    policy = load_policy(config)
    Checkpoints(folder, Trainer.start(config, [], policy, WeightedSum([])), config).restore_weights(1)
    assert policy.num_updates == 1


def test_best_weights_that_were_altered_during_the_run_are_refused_by_name(make_config, scripted, tmp_path):
    harm = f"""
honest = judge
def judge(completions, **_):
    if num_evaluations == 3 and len(completions) == 12:
        from pathlib import Path
        Path({str(tmp_path / "run/checkpoints/step-000001/weights.safetensors")!r}).write_bytes(b"x")
    return honest(completions)
"""
    judge = scripted([0, 1, 0, 0], harm)
    with pytest.raises(
        RunFolderError, match=r"step-000001/weights\.safetensors: cut short or altered"
    ) as caught:
        run(make_config(judges=(judge,), keep_best=judge, eval_every=1, num_steps=3))
    assert caught.value.__notes__ == [
        f"steps taken: 3; what was written stays in {tmp_path / 'run'}",
        f"the last checkpoint is of step 3; resume from there with: klimb train --resume {tmp_path / 'run'}",
    ]
    assert (tmp_path / "run/checkpoints/step-000003/state.json").is_file()
    assert not (tmp_path / "run/model").exists()


def test_a_judge_without_an_opinion_cannot_choose(make_config, scripted):
    judge = scripted([None])
    config = make_config(judges=(judge,), keep_best=judge, eval_every=1)
    with pytest.raises(KlimbError, match="returned None for every completion of the evaluation prompts"):
        run(config)
    assert not config.out.exists()


def test_an_evaluation_without_an_opinion_is_never_the_best(make_config, scripted):
    judge = scripted([0, None, 1])
    result, screen = run(make_config(judges=(judge,), keep_best=judge, eval_every=1, num_steps=2))
    assert result.summary.best.step == 2
    assert "judge no opinion" in screen
    saved = json.loads((result.folder.path / "best.json").read_text())
    assert [evaluation["mean"] for evaluation in saved["evaluations"]] == [0, None, 1]
    assert (saved["step"], saved["mean"], saved["interval"]) == (2, 1, [1, 1])
