"""The checks that look at options, files and the tokenizer: each fails on what is made to be wrong."""

import copy
import io

import pytest
from rich.console import Console

from klimb.data.prompts import PromptRow
from klimb.training.preflight.checks import (
    check_batch,
    check_disk,
    check_end_tokens,
    check_header,
    check_lengths,
    predict_disk,
)
from klimb.training.report.console import Display
from klimb.training.run import train
from templates import ALL

CHAT = [PromptRow([{"role": "user", "content": "hi"}], {}, "chat:1")]


@pytest.fixture
def policy_whose_template_ends_with(make_setting):
    policy = make_setting().policy

    def make(ending):
        policy.tokenizer = copy.deepcopy(policy.tokenizer)
        policy.tokenizer.chat_template = (
            "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}"
            + ending
            + "{% endfor %}"
        )
        return policy

    return make


def test_a_turn_that_ends_with_no_end_token_is_named_with_the_remedy(policy_whose_template_ends_with):
    policy = policy_whose_template_ends_with("<|system|>")
    result = check_end_tokens(policy, CHAT)
    number = policy.tokenizer.convert_tokens_to_ids("<|system|>")
    assert result.outcome == "failed"
    assert f"ends a turn with <|system|> ({number}), which ends no completion" in result.words
    assert result.remedy == f"add {number} to eos_token_id in the model's generation_config.json"
    policy.end_ids.append(number)
    assert check_end_tokens(policy, CHAT).outcome == "passed"


def test_plain_prompts_do_not_care_for_the_template(policy_whose_template_ends_with, make_setting):
    policy = policy_whose_template_ends_with("<|system|>")
    assert check_end_tokens(policy, make_setting().rows).outcome == "passed"


@pytest.mark.parametrize("ending", ["", " END", "{{ raise_exception('no assistant here') }}"])
def test_a_template_whose_end_cannot_be_told_is_a_warning(ending, policy_whose_template_ends_with):
    assert check_end_tokens(policy_whose_template_ends_with(ending), CHAT).outcome == "warned"


def test_a_header_that_the_template_does_not_write_is_a_warning(
    policy_whose_template_ends_with, make_setting
):
    policy = policy_whose_template_ends_with("<|im_end|>")
    (found,) = check_header(policy, CHAT)
    assert found.outcome == "warned"
    assert "begins the assistant's turn with '<|assistant|>'" in found.words
    policy.tokenizer.chat_template += "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    assert check_header(policy, CHAT) == []
    assert check_header(policy, make_setting().rows[:4]) == []  # plain text


@pytest.mark.parametrize("name", ALL)
def test_templates_of_well_known_models_write_the_header(name, policy_whose_template_ends_with):
    policy = policy_whose_template_ends_with("")
    policy.tokenizer.chat_template = ALL[name]
    assert check_header(policy, CHAT) == []


def test_text_and_line_ends_before_the_token_are_passed_over(policy_whose_template_ends_with):
    assert check_end_tokens(policy_whose_template_ends_with(" .\n<|stop|>\n"), CHAT).outcome == "passed"


def test_a_model_without_end_tokens_is_a_warning(make_setting):
    setting = make_setting()
    setting.policy.end_ids = []
    result = check_end_tokens(setting.policy, setting.rows)
    assert (result.outcome, "eos_token_id" in result.remedy) == ("warned", True)


def test_a_tokenizer_that_ends_the_prompt_is_a_warning(make_setting, monkeypatch):
    setting = make_setting()
    end = setting.policy.end_ids[0]
    usual = setting.policy.encode
    monkeypatch.setattr(setting.policy, "encode", lambda prompt: [*usual(prompt), end])
    assert "after its end" in check_end_tokens(setting.policy, setting.rows).words


def test_a_longest_prompt_is_told_beside_the_context():
    assert check_lengths(64, 59, 5).words == "the longest prompt has 59 tokens, 64 with its completion, of 64"
    assert check_lengths(63, 59, 5).outcome == "failed"
    assert check_lengths(None, 59, 5).outcome == "passed"


def test_the_arithmetic_of_the_batch_is_spelled_out(make_config):
    words = check_batch(make_config(micro_batch_size=4), 9, 7, 12).words
    # 2 prompts × 12 tokens + 6 completions × 5 tokens; 7 prompts make 3 steps, and one waits.
    assert words == (
        "2 prompts × 3 completions = 6 samples per step, at most 54 tokens, in 2 micro-batches; "
        "7 prompts = 3 steps per epoch; 9 steps = 3 epochs"
    )


def test_a_disk_that_is_too_small_fails():
    parts = {"3 checkpoints": 600_000_000, "model": 300_000_000}
    assert check_disk(parts, 899_999_999).outcome == "failed"
    assert check_disk(parts, 900_000_000).outcome == "warned"
    assert check_disk(parts, 2_000_000_000).outcome == "passed"
    assert check_disk(parts, None).outcome == "passed"
    assert (
        "0.90 GB to be written (3 checkpoints 0.60 GB, model 0.30 GB), 2.00 GB free"
        in check_disk(parts, 2_000_000_000).words
    )


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({"num_steps": 10, "checkpoint_every": 4, "keep_checkpoints": None}, 3),
        (
            {"num_steps": 100, "checkpoint_every": 4, "keep_checkpoints": 2},
            3,
        ),  # one is there while it is written
        ({"num_steps": 5, "checkpoint_every": 5, "eval_every": 5, "keep_best": "reward"}, 2),
    ],
)
def test_the_disk_is_predicted_from_weights_moments_and_what_is_kept(changes, count, make_setting):
    setting = make_setting(**changes)
    moved = sum(p.numel() for p in setting.policy.trainable().values())
    parts = predict_disk(setting.policy, setting.config, longest_prompt=12, num_judged=6)
    assert parts[f"{count} checkpoints"] == count * 12 * moved  # a weight and two moments, 4 bytes each
    assert parts["model"] == 4 * sum(p.numel() for p in setting.policy.model.parameters())


@pytest.mark.slow
def test_what_a_run_writes_is_about_what_was_predicted(make_setting):
    setting = make_setting(num_steps=6, checkpoint_every=2)
    parts = predict_disk(setting.policy, setting.config, longest_prompt=12, num_judged=6)
    train(setting.config, Display(Console(file=io.StringIO())))
    folder = setting.config.out
    lines = sum(file.stat().st_size for file in folder.glob("*.jsonl"))
    stored = sum(file.stat().st_size for file in folder.rglob("checkpoints/**/*.safetensors"))
    assert 0.3 * parts["lines"] < lines < 1.5 * parts["lines"]
    assert (
        parts["3 checkpoints"] <= stored < parts["3 checkpoints"] + 3 * 20_000
    )  # names in the files' headers
