"""PPO by its defaults on a small problem: it learns, and so does its value function, whatever the size of rewards."""

import statistics

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from klimb.config.train import TrainConfig
from klimb.data.prompts import PromptRow
from klimb.policy.policy import Policy
from klimb.reward.function import FunctionReward
from klimb.reward.reward import WeightedSum
from klimb.training.setup import load_value_function
from klimb.training.trainer import Trainer

NUM_STEPS = 48
TEXTS = (
    "abc",
    "dog",
    "fghij",
    "pea",
    "cab",
    "mouse",
    "nib",
    "hen",
    "jam",
    "keg",
    "fig",
    "lad",
    "old",
    "bin",
    "mole",
)


@pytest.fixture
def make_policy(letter_tokenizer):
    """A Llama of two layers over sixteen letters."""

    def make():
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        no_special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = LlamaForCausalLM(
                LlamaConfig(vocab_size=26, max_position_embeddings=64, **sizes, **no_special)
            )
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    torch.nn.init.normal_(parameter, std=0.2)
        return Policy(model, letter_tokenizer)

    return make


def run(policy, size, **changes):
    """Rewards in units of `size`, and what the value function shows, of each step."""

    def first_letters(prompts, completions):
        return [
            size * (c.count(p[0]) + 0.3 * c.count("e")) for p, c in zip(prompts, completions, strict=True)
        ]

    options = {
        "model": "",
        "prompts": "p",
        "reward": ("r",),
        "out": "o",
        "eval_prompts": None,
        "objective": "ppo",
    }
    sizes = {
        "prompts_per_step": 8,
        "max_new_tokens": 12,
        "num_steps": NUM_STEPS,
        "lr": 3e-3,
        "beta": 0.05 * size,
    }
    config = TrainConfig.from_dict(options | sizes | changes)
    reward = WeightedSum([FunctionReward("first_letters", first_letters)])
    rows = [PromptRow(text, {}, text) for text in TEXTS]
    trainer = Trainer.start(
        config, rows, policy, reward, value_function=load_value_function(config, policy, 1)
    )
    metrics = [trainer.train_step().metrics for _ in range(NUM_STEPS)]
    return [row["reward"] / size for row in metrics], [row["value"] for row in metrics]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "changes"),
    [(1.0, {}), (1.0, {"value_model": "self"}), (50.0, {"value_clip": 10.0}), (0.02, {"value_clip": 4e-3})],
)
def test_ppo_learns_by_its_defaults_and_its_values_explain_returns(make_policy, size, changes):
    rewards, values = run(make_policy(), size, **changes)
    third = NUM_STEPS // 3
    assert statistics.fmean(rewards[-third:]) > 2 * statistics.fmean(rewards[:third])
    assert statistics.fmean(value["explained_variance"] for value in values[-third:]) > 0.05
    assert statistics.fmean(value["clipped"] for value in values) < 0.1
