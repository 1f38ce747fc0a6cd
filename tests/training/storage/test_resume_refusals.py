"""What a run may not be resumed with, or onto, and what it is resumed from when something is damaged."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from klimb.cli.main import main
from klimb.config.train import TrainConfig
from klimb.errors import ConfigError, RunFolderError
from klimb.training.storage.folder import RunFolder
from klimb.training.storage.resume import _MAY_CHANGE, _PLACES, plan_resumption


def test_options_that_change_are_shown_and_recorded_and_hold_from_there_on(plain, cut, run):
    screen = run(
        replace(cut, lr=0.05, checkpoint_every=1, keep_checkpoints=None, micro_batch_size=3), resume=True
    )
    assert "lr: 0.005 → 0.05" in screen
    assert "keep_checkpoints: 3 → none" in screen
    assert "micro_batch_size: 2 → 3 (rounding may differ)" in screen
    folder, before = RunFolder.open(cut.out), RunFolder.open(plain.out)
    factors = [
        now["lr"] / then["lr"]
        for now, then in zip(folder.read("metrics"), before.read("metrics"), strict=True)
    ]
    assert factors == pytest.approx([1, 1, 1, 1, 10, 10])
    (entry,) = folder.read_resumed()
    assert entry["changes"] == {
        "lr": [0.005, 0.05],
        "checkpoint_every": [2, 1],
        "keep_checkpoints": [3, None],
        "micro_batch_size": [2, 3],
    }
    assert folder.checkpoint_steps() == [2, 4, 5, 6]
    assert json.loads((cut.out / "config.json").read_text())["lr"] == 0.05


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 3}, "seed: 0 when it began, 3 now"),
        ({"prompts_per_step": 3}, "prompts_per_step: 2 when it began, 3 now"),
        ({"completions_per_prompt": 2}, "completions_per_prompt: 3 when it began, 2 now"),
        ({"lora_rank": 2}, "lora_rank: none when it began, 2 now"),
        ({"temperature": 0.5}, r"temperature: 1\.0 when it began, 0\.5 now"),
        (
            {"beta": 0.1, "baseline": "none"},
            r"baseline: leave_one_out when it began, none now; beta: 0\.05 when it began",
        ),
        ({"judges": ("vader",)}, "judges:  when it began, vader now"),
        ({"kl_target": 3.0}, r"kl_target: 0\.5 when it began, 3\.0 now"),
        ({"lr_schedule": "linear"}, "lr_schedule: cosine when it began, linear now"),
        ({"precision": "bfloat16"}, "precision: float32 when it began, bfloat16 now"),
        ({"num_steps": 3}, "num_steps: 4 steps have been taken; expected at least as many, got 3"),
    ],
)
def test_options_that_cannot_change_are_refused_by_name(changes, message, cut, run, tree):
    before = tree(cut.out)
    with pytest.raises(ConfigError, match=message):
        run(replace(cut, **changes), resume=True)
    assert tree(cut.out) == before


def test_going_back_to_a_checkpoint_that_is_not_there_names_those_that_are(cut, run, tree):
    before = tree(cut.out)
    with pytest.raises(RunFolderError, match=r"no checkpoint of step 3 to go back to; expected 2, 4"):
        run(cut, resume=True, from_step=3)
    (RunFolder.open(cut.out).checkpoint(2) / "state.json").write_text("{}")
    damaged = tree(cut.out)
    with pytest.raises(RunFolderError, match=r"cannot go back to that: .*step-000002"):
        run(cut, resume=True, from_step=2)
    assert before.keys() == damaged.keys()
    assert tree(cut.out) == damaged


def test_what_may_change_are_options():
    assert {*_MAY_CHANGE, *_PLACES} < set(TrainConfig.__dataclass_fields__)


def edit(file):
    file.write_text(file.read_text() + "\n")


@pytest.mark.parametrize(
    ("name", "changed"),
    [("prompts", "prompts.jsonl"), ("{reward}", "rules.py"), ("model", "model/config.json")],
)
def test_other_content_is_refused_by_name_and_can_be_accepted(
    name, changed, make_options, run, model_folder, tree, tmp_path
):
    shutil.copytree(model_folder, tmp_path / "model")
    config = make_options(model=str(tmp_path / "model"), num_steps=2, checkpoint_every=1)
    name = name.replace("{reward}", config.reward[0])
    run(config, cut_at=1)
    edit(tmp_path / changed)
    before = tree(config.out)
    with pytest.raises(ConfigError, match="the content has changed since the run began: ") as caught:
        run(config, resume=True)
    assert f"{name}: " in str(caught.value)
    assert f"--accept {name}" in str(caught.value)
    assert "then, " in str(caught.value)
    assert tree(config.out) == before
    screen = run(config, resume=True, accept=[name])
    assert f"{name}: the content has changed since the run began; accepted" in screen
    (entry,) = RunFolder.open(config.out).read_resumed()
    assert entry["accepted"] == [name]


def test_another_environment_is_told_and_recorded_and_goes_on(cut, run, monkeypatch):
    before = RunFolder.open(cut.out)
    then = json.loads(before.fingerprints.read_text())["<environment>"]
    assert then["torch"] == torch.__version__
    assert then["kernels"] == "not compiled" or len(then["kernels"]) == 12
    now = then | {"kernels": "others", "threads": "64"}
    monkeypatch.setattr("klimb.training.run.describe_environment", lambda _: now)
    screen = run(cut, resume=True)
    assert f"kernels: {then['kernels']} → others (rounding may differ)" in screen
    assert f"threads: {then['threads']} → 64 (" in screen
    assert "torch: " not in screen
    (entry,) = RunFolder.open(cut.out).read_resumed()
    assert entry["environment"] == now
    monkeypatch.setattr("klimb.training.run.describe_environment", lambda _: then)
    screen = run(cut, resume=True, from_step=2)  # back on the first one
    assert f"kernels: others → {then['kernels']} (" in screen


def test_what_has_not_changed_cannot_be_accepted(cut, run):
    with pytest.raises(ConfigError, match="accept: prompts: nothing of that name has changed"):
        run(cut, resume=True, accept=["prompts"])


def test_prompts_that_were_moved_are_known_by_their_content(plain, cut, run, essence, tmp_path):
    shutil.copy(cut.prompts, tmp_path / "elsewhere.jsonl")
    screen = run(replace(cut, prompts=tmp_path / "elsewhere.jsonl"), resume=True)
    assert f"prompts: {cut.prompts} → {tmp_path / 'elsewhere.jsonl'}" in screen
    card = "model/README.md"  # which names the prompts' file
    assert {**essence(cut.out), card: ""} == {**essence(plain.out), card: ""}


def test_files_that_lie_elsewhere_are_refused_where_nothing_tells_that_they_are_the_same(cut, run, tmp_path):
    shutil.copy(cut.prompts, tmp_path / "elsewhere.jsonl")
    (cut.out / "fingerprints.json").unlink()
    with pytest.raises(ConfigError, match=r"prompts: has moved, and .* is missing, so klimb cannot check"):
        run(replace(cut, prompts=tmp_path / "elsewhere.jsonl"), resume=True)


def cut_short(path):
    (path / "weights.safetensors").write_bytes((path / "weights.safetensors").read_bytes()[:-100])


def flip_a_bit(path):
    content = bytearray((path / "optimiser.safetensors").read_bytes())
    content[len(content) // 2] ^= 4
    (path / "optimiser.safetensors").write_bytes(bytes(content))


def flip_a_bit_of_the_state(path):
    (path / "state.json").write_text((path / "state.json").read_text().replace('"beta": 0.', '"beta": 1.'))


DAMAGES = {
    "weights.safetensors: cut short or altered": cut_short,
    "optimiser.safetensors: cut short or altered": flip_a_bit,
    "state.json: altered since it was written": flip_a_bit_of_the_state,
    "state.json: missing": lambda path: (path / "state.json").unlink(),
    "optimiser.safetensors: missing": lambda path: (path / "optimiser.safetensors").unlink(),
}


@pytest.mark.parametrize(("message", "damage"), DAMAGES.items(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_named_and_passed_over(message, damage, cut):
    damage(cut.out / "checkpoints" / "step-000004")
    resumption = plan_resumption(cut)
    assert resumption.step == 2
    (remark,) = resumption.remarks
    assert remark.startswith(f"passed over: {cut.out / 'checkpoints' / 'step-000004'}")
    assert message in remark


def test_a_run_with_a_damaged_checkpoint_ends_in_the_same_bits(plain, cut, run, essence):
    flip_a_bit(cut.out / "checkpoints" / "step-000004")
    screen = run(cut, resume=True)
    assert "optimiser.safetensors: cut short or altered since it was written" in screen
    assert f"Resuming {cut.out} after 2 of 6 steps" in screen
    assert essence(cut.out) == essence(plain.out)


def test_a_run_without_a_good_checkpoint_is_refused(cut, run, tree):
    for step in (2, 4):
        cut_short(cut.out / "checkpoints" / f"step-00000{step}")
    before = tree(cut.out)
    message = r"none of its checkpoints can be used: .*step-000004.*cut short.*step-000002.*cut short"
    with pytest.raises(RunFolderError, match=message):
        run(cut, resume=True)
    assert tree(cut.out) == before


def test_lines_whose_checkpoints_are_gone_are_not_thrown_away(cut, run):
    shutil.rmtree(cut.out / "checkpoints")
    with pytest.raises(RunFolderError, match="has the lines of 5 steps but no checkpoint"):
        run(cut, resume=True)
    assert len(RunFolder.open(cut.out).read("metrics")) == 5


@pytest.mark.parametrize("name", ["metrics", "completions", "evaluations"])
def test_a_checkpoint_whose_lines_are_gone_is_passed_over(name, cut, run):
    (cut.out / f"{name}.jsonl").write_text("")
    with pytest.raises(RunFolderError, match=f"step-000004: .*{name}"):
        run(cut, resume=True)


def test_a_folder_that_is_in_use_is_refused(cut, run):
    with (
        RunFolder.find(cut.out).claimed(),
        pytest.raises(RunFolderError, match="another process is using it"),
    ):
        run(cut, resume=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume"], "--resume: expected the folder of a run after it"),
        (["--resume", "nowhere"], "nowhere: not the folder of a run"),
        (["--resume", "{run}", "--out", "other"], "out: a resumed run stays in its folder"),
        (["--resume={run}", "--seed", "3"], "seed: 0 when it began, 3 now"),
        (["--resume={run}", "--from-step", "3"], "has no checkpoint of step 3"),
        (["--resume", "{run}", "--num-steps", "3"], "num_steps: 4 steps have been taken"),
    ],
)
def test_what_cannot_be_resumed_is_one_message_and_exit_code_2(arguments, message, cut, capsys):
    assert main(["train", *[part.replace("{run}", str(cut.out)) for part in arguments]]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
