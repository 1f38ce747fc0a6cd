"""Whole runs with a value function: PPO, resumed to the same bits at every boundary."""

import json
import shutil
from dataclasses import replace

import pytest

from klimb.errors import ArgumentError, ConfigError, RunFolderError
from klimb.reward.reward import WeightedSum
from klimb.training.setup import load_policy, load_value_function
from klimb.training.storage.resume import plan_resumption
from klimb.training.trainer import Trainer

MODEL = "model/model.safetensors"
VALUE = ("value.safetensors", "value_optimiser.safetensors")
PPO = {
    "objective": "ppo",
    "num_minibatches": 2,
    "num_epochs": 2,
    "num_steps": 3,
    "checkpoint_every": 1,
    "keep_checkpoints": None,
    "eval_completions_per_prompt": 1,
}


def lines_of(folder, name="metrics"):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def saved_by(folder, step):
    checkpoint = folder / "checkpoints" / f"step-{step:06d}"
    return {file.name: file.read_bytes() for file in checkpoint.iterdir()} | {
        "model": (folder / MODEL).read_bytes()
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"value_warmup_steps": 1, "micro_batch_size": 2},
        pytest.param({"value_model": "self", "value_warmup_steps": 1}, marks=pytest.mark.slow),
        pytest.param(
            {"value_model": "self", "num_trainable_layers": 1, "micro_batch_size": 2}, marks=pytest.mark.slow
        ),
        pytest.param({"value_model": "self", "lora_rank": 2}, marks=pytest.mark.slow),
        pytest.param({"objective": "decoupled_ppo", "precision": "bfloat16"}, marks=pytest.mark.slow),
        pytest.param({"value_model": "self", "precision": "bfloat16"}, marks=pytest.mark.slow),
        pytest.param({"value_model": "another", "lora_rank": 2, "optimiser": "sgd"}, marks=pytest.mark.slow),
    ],
    ids=lambda changes: "_".join(map(str, changes.values())),
)
def test_ppo_resumes_at_every_boundary_to_the_same_bits(changes, options_in, model_folder, tmp_path, run):
    if changes.get("value_model") == "another":
        changes = changes | {"value_model": str(model_folder)}
    whole = options_in(tmp_path, **PPO | changes)
    run(whole)
    expected = saved_by(whole.out, 3)
    assert set(VALUE) <= set(expected)
    rows = lines_of(whole.out)
    assert [row["updates"] for row in rows] == [4] * 3
    assert rows[0]["value"]["explained_variance"] == 0 != rows[2]["value"]["explained_variance"]
    assert [row["grad_norm"] == 0 for row in rows] == [
        index < changes.get("value_warmup_steps", 0) for index in range(3)
    ]
    again = replace(whole, out=tmp_path / "again")
    shutil.copytree(whole.out, again.out)
    for boundary in (1, 2):
        run(again, resume=True, from_step=boundary)
        assert saved_by(again.out, 3) == expected
        assert [row["value"] for row in lines_of(again.out)] == [row["value"] for row in rows]


@pytest.fixture(scope="module")
def short(options_in, tmp_path_factory, run):
    config = options_in(tmp_path_factory.mktemp("short"), **PPO | {"num_steps": 1, "num_epochs": 1})
    return config, run(config)


def test_a_checkpoint_whose_value_function_is_damaged_is_passed_over(short, tmp_path):
    config, _ = short
    shutil.copytree(config.out, tmp_path / "run")
    file = tmp_path / "run" / "checkpoints" / "step-000001" / "value.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    (tmp_path / "run" / "report.html").unlink()
    with pytest.raises(RunFolderError, match=r"value\.safetensors: cut short or altered"):
        plan_resumption(replace(config, out=tmp_path / "run", num_steps=2, num_slices=1))


def test_a_run_says_what_its_value_function_is(short):
    _, shown = short
    assert "a head on the policy's last hidden state" in shown
    assert "The value function is a linear layer on the policy's last hidden state" in shown
    assert "no value after its last token" in shown


def test_a_value_model_with_another_vocabulary_or_too_short_a_context_is_refused(
    make_options, model_folder, tmp_path
):
    policy = load_policy(make_options())
    other = tmp_path / "other"
    shutil.copytree(model_folder, other)
    config = make_options(objective="ppo", value_model=str(other), max_new_tokens=60)
    with pytest.raises(
        ConfigError, match=r"value_model: .*other reads 64 tokens at most, and prompts of 5 with"
    ):
        load_value_function(config, policy, 5)
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace('"<|system|>"', '"<|sys|>"'))
    with pytest.raises(ConfigError, match=r"value_model: .*other has another vocabulary than the policy"):
        load_value_function(config, policy, 1)
    assert load_value_function(make_options(), policy, 1) is None


@pytest.mark.parametrize(
    "option", ["value_model", "value_lr", "value_warmup_steps", "value_clip", "trace_decay"]
)
def test_an_option_of_a_value_function_without_one_is_refused(option, make_options):
    value = {"value_model": "self", "value_warmup_steps": 1}.get(option, 0.5)
    message = (
        f"{option}: only used with a value function, and the objective reinforce has none, since its baseline"
    )
    with pytest.raises(ConfigError, match=message):
        make_options(**{option: value})
    assert make_options(objective="ppo", **{option: value}).algorithm.baseline == "value"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value_lr": 0.0}, "value_lr: expected a finite number above 0, got 0.0"),
        ({"value_model": " "}, "value_model: expected head, self, or a model, got an empty name"),
        ({"value_warmup_steps": 4}, "value_warmup_steps: expected 0 to 3, since .* num_steps 4, got 4"),
        ({"scale": "group_std"}, "scale: group_std divides by a spread of rewards"),
        ({"ratio": "sequence"}, "ratio: sequence is one number for a completion"),
    ],
)
def test_options_of_a_value_function_that_cannot_be_are_refused(changes, message, make_options):
    with pytest.raises(ConfigError, match=message):
        make_options(objective="ppo", **changes)


def test_an_objective_with_values_is_refused_without_a_value_function(make_options):
    config = make_options(objective="ppo")
    with pytest.raises(ArgumentError, match="value_function: the objective ppo needs one, got none"):
        Trainer.start(config, [], load_policy(make_options()), WeightedSum([]))
