"""Chats through a whole run: what rewards get of them, what is written, and what is refused before the first step."""

import json

import pytest
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from klimb.config.pairwise import CompareConfig
from klimb.errors import DataError
from klimb.pairwise.compare import compare
from klimb.reward.scorer import Scorer
from klimb.training.preflight.preflight import run_preflight
from templates import GEMMA, QWEN_3, byte_tokenizer

USER = {"role": "user", "content": "hi"}
SYSTEM = {"role": "system", "content": "Be brief."}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}
REWARDS = """
def by_state(completions, trainer_state, log_metric, log_extra, **kwargs):
    log_metric("step", trainer_state.global_step)
    log_extra("length", [len(c) for c in completions])
    return [float(trainer_state.global_step + trainer_state.epoch) for _ in completions]

async def by_ids(completion_ids, **kwargs):
    return [float(len(ids)) for ids in completion_ids]

def thinks(completions, **kwargs):
    return [float("<think>" in c) for c in completions]
"""


def lines_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture
def make_chat_model(tmp_path):
    """A tiny model with a template of a real one, as a policy or as a reward model."""

    def make(name, template, kind=LlamaForCausalLM, extra=()):
        import torch

        tokenizer = byte_tokenizer(template, extra=extra)
        tokenizer.eos_token = tokenizer.decode([tokenizer.convert_tokens_to_ids("<|im_end|>")])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = kind(
                LlamaConfig(
                    vocab_size=len(tokenizer),
                    hidden_size=16,
                    intermediate_size=24,
                    num_hidden_layers=1,
                    num_attention_heads=2,
                    num_labels=1,
                    eos_token_id=tokenizer.eos_token_id,
                    pad_token_id=tokenizer.eos_token_id,
                )
            )
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    torch.nn.init.normal_(parameter, std=0.4)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return make


@pytest.fixture
def make_chats(make_options, write_jsonl, tmp_path):
    """Options of a run on four chats."""
    (tmp_path / "chat_rewards.py").write_text(REWARDS)

    def make(prompt, *, columns=None, reward="by_ids", **changes):
        prompts = [[*prompt[:-1], prompt[-1] | {"content": f"{prompt[-1]['content']} {i}"}] for i in range(4)]
        file = write_jsonl([{"prompt": each} | (columns or {}) for each in prompts], "chats.jsonl")
        spec = reward if "/" in reward else f"{tmp_path / 'chat_rewards.py'}:{reward}"
        return make_options(prompts=file, reward=(spec,), num_steps=2, **changes)

    return make


def test_a_reward_model_reads_prefill_and_completion_as_one_turn(make_chat_model, make_chats, run):
    policy = make_chat_model("policy", QWEN_3)
    judge = make_chat_model("judge", GEMMA, LlamaForSequenceClassification)
    prefill = {"role": "assistant", "content": "I think"}
    config = make_chats([USER, prefill], reward=judge, model=policy)
    run(config)
    scorer = Scorer.load(judge, device="cpu")
    for row in lines_of(config.out / "completions.jsonl"):
        whole = [USER, {"role": "assistant", "content": row["prompt"][-1]["content"] + row["completion"]}]
        ids = scorer.tokenizer.apply_chat_template(whole, return_dict=False)
        assert row["reward"] == pytest.approx(float(scorer.scores([ids])[0]), abs=1e-4)


def test_functions_are_told_how_far_the_run_is_and_what_they_log_is_written(make_chat_model, make_chats, run):
    config = make_chats(
        [USER], reward="by_state", model=make_chat_model("policy", QWEN_3), prompts_per_step=2, eval_every=1
    )
    run(config)
    metrics = lines_of(config.out / "metrics.jsonl")
    assert [row["logged"] for row in metrics] == [{"step": 0.0}, {"step": 1.0}]
    assert [row["reward"] for row in metrics] == [0.0, 1.5]  # two of four prompts are half an epoch
    rows = lines_of(config.out / "completions.jsonl") + lines_of(config.out / "evaluations.jsonl")
    assert all(row["extra"] == {"length": 1} for row in rows)
    after = [row["reward"] for row in lines_of(config.out / "evaluations.jsonl") if row["when"] == "after"]
    assert set(after) == {3.0}


def test_a_run_with_an_asynchronous_reward_is_resumed(make_chat_model, make_chats, run, essence):
    from dataclasses import replace

    config = make_chats([USER], model=make_chat_model("policy", QWEN_3), checkpoint_every=1)
    run(config)
    cut = replace(config, out=config.out.parent / "cut")
    run(cut, cut_at=0)
    run(cut, resume=True)
    assert essence(cut.out) == essence(config.out)
    rewards = [row["reward"] for row in lines_of(config.out / "completions.jsonl")]
    assert rewards == [float(row["length"]) for row in lines_of(config.out / "completions.jsonl")]


@pytest.mark.parametrize("where", ["policy", "reward", "evaluation"])
def test_a_prompt_that_a_template_refuses_stops_a_run_before_it_begins(
    where, make_chat_model, make_chats, run, write_jsonl
):
    knows_no_system = make_chat_model("gemma", GEMMA)
    policy = knows_no_system if where == "policy" else make_chat_model("policy", QWEN_3)
    judge = make_chat_model("judge", GEMMA, LlamaForSequenceClassification)
    changes, line = {}, "chats.jsonl:1: "
    if where == "evaluation":
        file = write_jsonl([{"prompt": [USER]}, {"prompt": [SYSTEM, USER]}], "held_out.jsonl")
        changes, line = {"eval_prompts": file}, "held_out.jsonl:2: "
    prompt = [USER] if where == "evaluation" else [SYSTEM, USER]
    config = make_chats(prompt, reward="by_ids" if where == "policy" else judge, model=policy, **changes)
    with pytest.raises(DataError) as raised:
        run(config)
    assert line in str(raised.value)
    assert "System role not supported; move the system message to the beginning" in str(raised.value)
    assert not config.out.exists()


def test_tools_reach_the_policys_prompt_and_the_reward_models_chat(make_chat_model, make_chats, run):
    policy = make_chat_model("policy", QWEN_3)
    judge = make_chat_model("judge", QWEN_3, LlamaForSequenceClassification)
    config = make_chats([USER], columns={"tools": json.dumps([TOOL])}, reward=judge, model=policy)
    run(config)
    scorer = Scorer.load(judge, device="cpu")
    for row in lines_of(config.out / "completions.jsonl"):
        whole = [*row["prompt"], {"role": "assistant", "content": row["completion"]}]
        ids = scorer.tokenizer.apply_chat_template(whole, tools=[TOOL], return_dict=False)
        assert row["reward"] == pytest.approx(float(scorer.scores([ids])[0]), abs=1e-4)


def outcome(checks, name):
    return next((check.outcome, check.remedy) for check in checks.results if check.name == name)


def test_the_preflight_says_what_templates_make_of_tools_and_why_a_reward_sees_no_tags(
    make_chat_model, make_chats
):
    from klimb.data.prompts import PromptFile
    from klimb.policy.lengths import check_lengths
    from klimb.reward.load import load_rewards
    from klimb.training.preflight.preflight import PreflightInputs
    from klimb.training.preflight.resources import base_memory
    from klimb.training.setup import load_policy

    opens = (
        "{{ '<|im_start|>' + messages[0].content }}{% if add_generation_prompt %}{{ '<think>\n' }}{% endif %}"
    )
    for template, skip, tools, reason in (
        (
            QWEN_3,
            "all",
            "passed",
            "<think>, </think> are special tokens, which --skip-special-tokens all leaves",
        ),
        (opens, "chat", "warned", "the chat template writes <think> at the end of the prompt"),
    ):
        config = make_chats(
            [USER],
            columns={"tools": [TOOL]},
            reward="thinks",
            model=make_chat_model("policy", template, extra=["<think>", "</think>"]),
            skip_special_tokens=skip,
        )
        rows, policy = PromptFile(config.prompts), load_policy(config)
        longest = check_lengths(policy, rows, 5)
        checks = run_preflight(
            PreflightInputs(
                config, policy, load_rewards(config.reward), rows, 4, longest, base_memory(config.device)
            )
        )
        assert outcome(checks, "tools")[0] == tools
        assert outcome(checks, "rewards")[0] == "warned"
        assert reason in outcome(checks, "rewards")[1]


def test_two_models_are_compared_on_chats_by_functions_that_take_tokens(
    make_chat_model, make_chats, tmp_path
):
    prefill = {"role": "assistant", "content": "I think"}
    config = make_chats([USER, prefill])
    models = [make_chat_model("one", QWEN_3), make_chat_model("two", GEMMA)]
    options = CompareConfig(
        model_a=models[0],
        model_b=models[1],
        prompts=config.prompts,
        by=config.reward,
        completions_per_prompt=2,
        max_new_tokens=5,
        out=tmp_path / "compare.html",
    )
    result = compare(options, say=lambda _: None)
    assert result.num_prompts == 4
