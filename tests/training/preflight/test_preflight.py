"""The checks before the first step: each fails on what is made to be wrong, and none leaves a trace."""

import io
import json
import os
from dataclasses import replace
from datetime import datetime

import pytest
import torch
from rich.console import Console
from transformers import LlamaConfig, LlamaForSequenceClassification

from klimb import KlimbError
from klimb.cli.main import main
from klimb.errors import PreflightError
from klimb.model.clock import clock_at
from klimb.training.preflight.preflight import run_preflight
from klimb.training.preflight.probe import check_reward_room, check_sampler, check_start, draw_probe
from klimb.training.report.console import Display
from klimb.training.run import train


def outcomes(found):
    return {result.name: result.outcome for result in found.results}


def result_of(found, name):
    return next(result for result in found.results if result.name == name)


def quiet():
    return Display(Console(file=io.StringIO(), width=300))


@pytest.mark.parametrize(
    "changes",
    [{}, {"lora_rank": 2}, {"num_trainable_layers": 1}, {"precision": "bfloat16"}, {"micro_batch_size": 1}],
)
def test_a_sound_setting_passes_every_check(changes, make_setting):
    found = run_preflight(make_setting(**changes))
    assert outcomes(found) == dict.fromkeys(
        ("batch", "lengths", "ends", "memory", "disk", "start", "sampler", "rewards"), "passed"
    )
    found.require_passed()
    assert all(result.remedy == "" for result in found.results)


def test_a_reference_that_is_another_model_fails_the_start(make_setting):
    setting = make_setting()
    with torch.no_grad():
        next(iter(setting.policy.reference._model.parameters())).mul_(1.5)
    found = run_preflight(setting)
    assert result_of(found, "start").outcome == "failed"
    assert "policy and reference must be one model at first" in result_of(found, "start").remedy
    with pytest.raises(PreflightError, match=r"preflight: start: KL .*--no-preflight skips this check"):
        found.require_passed()


def test_the_start_agrees_to_the_bit_and_says_so(make_setting):
    setting = make_setting()
    probe = draw_probe(setting.policy, setting.rows, setting.config)
    assert check_start(setting.policy, probe, 0.0).words == "KL 0 nats per completion, ratio within 0 of 1"


def test_a_policy_that_goes_on_is_not_asked_to_be_its_reference(make_setting):
    setting = make_setting()
    probe = draw_probe(setting.policy, setting.rows, setting.config)
    setting.policy.num_updates = 7
    result = check_start(setting.policy, probe, 0.0)
    assert result.outcome == "passed"
    assert "after 7 updates" in result.words


def test_a_trainer_that_computes_something_else_than_the_sampler_fails(make_setting):
    setting = make_setting()
    probe = draw_probe(setting.policy, setting.rows, setting.config)
    assert check_sampler(setting.policy, probe, 1e-3).outcome == "passed"
    with torch.no_grad():
        next(iter(setting.policy.trainable().values())).mul_(1.5)
    result = check_sampler(setting.policy, probe, 1e-3)
    assert result.outcome == "failed"
    assert "--precision float32" in result.remedy
    assert check_sampler(setting.policy, probe, 1e3).outcome == "passed"


def test_weights_that_are_not_numbers_fail_before_any_training(make_setting):
    setting = make_setting()
    with torch.no_grad():
        next(iter(setting.policy.trainable().values())).fill_(float("nan"))
    assert result_of(run_preflight(setting), "start").remedy.startswith("the weights are damaged")


@pytest.mark.parametrize(
    ("judge", "outcome", "words"),
    [
        ("vowels", "passed", " of 4 completions; "),
        ("same", "warned", "2.5 to 2.5 for 4 of 4 completions"),
        ("faint", "warned", "; they differ by 0.006"),  # beside a beta of 0.05 a nat
        ("broken", "failed", "raised ValueError: out of order"),
        ("infinite", "failed", "expected a finite number, got inf"),
    ],
)
def test_rewards_are_tried(judge, outcome, words, make_setting):
    result = result_of(run_preflight(make_setting(judge=judge)), "rewards")
    assert result.outcome == outcome
    assert words in result.words


@pytest.fixture
def make_classifier(tokenizer, tmp_path):
    def make(*, longest):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = LlamaForSequenceClassification(
                LlamaConfig(
                    vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=1,
                    num_attention_heads=2, num_labels=1, pad_token_id=tokenizer.eos_token_id, bos_token_id=None,
                    eos_token_id=None, max_position_embeddings=longest,
                )
            )  # fmt: skip
        folder = tmp_path / "judge"
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.mark.parametrize("role", ["reward", "judges"])
def test_a_reward_model_that_cannot_read_the_longest_completions_is_named(
    role, make_classifier, make_setting
):
    folder = str(make_classifier(longest=20))
    named = {"reward": (folder,)} if role == "reward" else {"judges": (folder,)}
    setting = make_setting(max_new_tokens=8, **named)  # the longest prompt, "a longer one", has 12 tokens
    (result,) = check_reward_room(setting.reward, setting.rows, 8)
    assert result.outcome == "passed"
    (result,) = check_reward_room(setting.reward, setting.rows, 9)
    assert result.outcome == "warned"
    assert (
        f"{folder} reads 20 tokens; prompts and completions have up to 21, too many for 1 of" in result.words
    )
    assert "lower --max-new-tokens" in result.remedy


def test_a_run_that_cannot_fit_is_refused_with_the_remedy_before_anything_is_written(
    make_config, monkeypatch
):
    monkeypatch.setattr("klimb.training.preflight.preflight.available_memory", lambda _: 1000)
    monkeypatch.setattr("klimb.training.preflight.preflight.used_memory", lambda _: 0)
    with pytest.raises(
        PreflightError, match=r"memory: .* at most.*take less: --micro-batch-size 3, .*--lora-rank 16"
    ):
        train(make_config(), quiet())
    assert not make_config().out.exists()


def test_a_model_that_cannot_fit_is_refused_before_it_is_loaded(make_config, monkeypatch):
    monkeypatch.setattr("klimb.training.preflight.preflight.available_memory", lambda _: 1000)
    monkeypatch.setattr("klimb.training.preflight.preflight.used_memory", lambda _: 0)
    monkeypatch.setattr("klimb.training.setup.load_policy", lambda _: pytest.fail("it was loaded"))
    with pytest.raises(PreflightError, match="memory"):
        train(make_config(), quiet())


def test_what_fails_stops_the_run_before_anything_is_written(make_config):
    with pytest.raises(KlimbError, match=r"rewards: .*raised ValueError: out of order"):
        train(make_config(judge="broken"), quiet())
    assert not make_config().out.exists()


def files_of(folder):
    found = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name not in (
            "config.json",
            "report.html",
            "README.md",
        ):  # which name options
            found[str(file.relative_to(folder))] = file.read_bytes()
    timed = {"seconds", "completions_per_second", "peak_memory_bytes"}
    metrics = [json.loads(line) for line in found.pop("metrics.jsonl").splitlines()]
    return found, [{key: value for key, value in row.items() if key not in timed} for row in metrics]


@pytest.mark.parametrize(
    ("judge", "changes"),
    [
        ("noisy", {}),  # which draws from the generators that all share
        pytest.param("vowels", {"lora_rank": 2}, marks=pytest.mark.slow),
        pytest.param("vowels", {"num_trainable_layers": 1, "micro_batch_size": 2}, marks=pytest.mark.slow),
    ],
)
def test_a_run_is_the_same_to_the_bit_with_the_checks_and_without(judge, changes, make_config, tmp_path):
    found = []
    for is_checked in (True, False):
        options = make_config(
            judge=judge, out=tmp_path / str(is_checked), preflight=is_checked, num_steps=2, **changes
        )
        with clock_at(datetime(2026, 1, 1)):  # when a run began is kept in its folder
            train(options, quiet())
        found.append(files_of(options.out))
    (files, lines), (other_files, other_lines) = found
    assert [
        name for name in files.keys() | other_files.keys() if files.get(name) != other_files.get(name)
    ] == []
    assert lines == other_lines


def test_the_checks_leave_the_policy_as_it_was(make_setting):
    setting = make_setting()
    before = {name: weight.clone() for name, weight in setting.policy.model.state_dict().items()}
    state = torch.random.get_rng_state()
    run_preflight(setting)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert setting.policy.num_updates == 0
    assert all(p.grad is None for p in setting.policy.model.parameters())
    after = setting.policy.model.state_dict()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())


def test_the_probe_is_of_the_shortest_prompts_and_of_numbers_of_its_own(make_setting):
    setting = make_setting()
    probe = draw_probe(setting.policy, setting.rows, setting.config)
    assert probe.batch.prompts == ["one", "one", "x", "x"]
    again = draw_probe(setting.policy, setting.rows, setting.config)
    other = draw_probe(setting.policy, setting.rows, replace(setting.config, seed=1))
    assert probe.batch.texts == again.batch.texts
    assert probe.batch.texts != other.batch.texts


def test_the_screen_shows_every_check_and_remedy(make_setting):
    screen = io.StringIO()
    found = run_preflight(make_setting(judge="same"))
    Display(Console(file=screen, width=300)).preflight_finished(found, with_memory=True)
    shown = screen.getvalue()
    for result in found.results:
        assert result.name in shown
        assert result.remedy in shown
    assert "✓ batch" in shown
    assert "! rewards" in shown
    assert "in all, at most" in shown
    assert "optimiser's moments" in shown


def arguments(make_config, tmp_path, *more, judge="vowels"):
    config = make_config(judge=judge)
    return [
        *["--model", config.model, "--prompts", str(config.prompts), "--reward", config.reward[0]],
        *["--prompts-per-step", "2", "--max-new-tokens", "5", "--out", str(tmp_path / "run"), *more],
    ]


def test_klimb_check_looks_and_writes_nothing(make_config, tmp_path, capsys):
    before = sorted(os.walk(tmp_path))
    assert main(["check", *arguments(make_config, tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "✓ start" in shown
    assert "in all, at most" in shown
    assert [entry for entry in sorted(os.walk(tmp_path)) if "__pycache__" not in str(entry)] == before


def test_klimb_check_ends_with_2_where_a_check_fails(make_config, tmp_path, capsys):
    assert main(["check", *arguments(make_config, tmp_path, judge="broken")]) == 2
    told = capsys.readouterr()
    assert "✗ rewards" in told.out
    assert "klimb: preflight: rewards: " in told.err
    assert not (tmp_path / "run").exists()


def test_klimb_check_takes_a_file_of_options(make_config, tmp_path, capsys):
    config = make_config()
    (tmp_path / "run.toml").write_text(
        f'model = "{config.model}"\nprompts = "{config.prompts}"\nreward = ["{config.reward[0]}"]\n'
        f'out = "{config.out}"\nmax_new_tokens = 5\nprompts_per_step = 3\n'
    )
    assert main(["check", "--config", str(tmp_path / "run.toml"), "--completions-per-prompt", "2"]) == 0
    assert "3 prompts × 2 completions = 6 samples per step" in capsys.readouterr().out


def test_without_preflight_nothing_is_checked(make_config):
    screen = io.StringIO()
    train(make_config(preflight=False, num_steps=1), Display(Console(file=screen, width=300)))
    assert "Checked" not in screen.getvalue()
