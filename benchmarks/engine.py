"""Sampling, scoring and update, each alone, of a model in SmolLM2-135M's shape whose weights are random.

python benchmarks/engine.py [--settings a b …] [--precisions float32 bfloat16] [--rounds 3]

On a GPU each setting runs in turns with tokens replayed (policy/engine/cuda_graph.py) and with the model's layers
called for every token. Seconds are medians over rounds, after a first that warms up; every completion has its full
length; memory is the most that PyTorch held on the GPU at once.
"""

import argparse
import os
import statistics
import time
from itertools import pairwise
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from klimb.model.trainable import Lora, add_lora
from klimb.policy.policy import Policy, SampleKey

SETTINGS = {
    "a": {"prompts": 4, "group": 4, "prompt_tokens": 38, "new_tokens": 32},
    "d": {"prompts": 4, "group": 4, "prompt_tokens": 38, "new_tokens": 32, "lora": 16},
    "e": {"prompts": 16, "group": 8, "prompt_tokens": 64, "new_tokens": 128},
    "f": {"prompts": 16, "group": 8, "prompt_tokens": 128, "new_tokens": 384},
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
VOCABULARY = 49_152


def make_policy(precision: Any, lora: int | None) -> Policy:
    """A policy of random weights, whose completions never end by themselves."""
    torch.manual_seed(0)
    shape = LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, vocab_size=VOCABULARY, max_position_embeddings=8192, tie_word_embeddings=True,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(shape)
    model.to(DEVICE)
    if lora is not None:
        model = add_lora(model, Lora(lora, 2.0 * lora), seed=0)
    policy = Policy(model, SimpleNamespace(eos_token_id=0), precision=precision)
    policy.end_ids = []
    return policy


def clock() -> float:
    """The time, once the device has done what it was told."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(policy: Policy, setting: dict[str, int], number: int) -> list[float]:
    """Seconds of sampling, scoring and update, and bytes at the peak."""
    generator = torch.Generator().manual_seed(number)
    prompts = [
        torch.randint(1, VOCABULARY, (setting["prompt_tokens"],), generator=generator).tolist()
        for _ in range(setting["prompts"])
    ]
    key = SampleKey(0, number, list(range(len(prompts))))
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    marks = [clock()]
    drawn = policy.sample(prompts, setting["group"], max_new_tokens=setting["new_tokens"], key=key)
    marks.append(clock())
    assert policy.reference is not None  # noqa: S101  every policy of this benchmark has one
    policy.reference.log_probs(drawn, policy.micro_batch_size)
    marks.append(clock())
    advantages = torch.linspace(-1, 1, len(drawn), device=DEVICE)
    (policy.log_probs(drawn).sum(dim=1) * advantages).sum().backward()
    policy.take_gradients()
    marks.append(clock())
    peak = torch.cuda.max_memory_allocated() if DEVICE == "cuda" else 0
    return [*(after - before for before, after in pairwise(marks)), peak]


def main() -> None:
    """Print a row for each setting, precision and way of decoding."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=["a", "d", "e"])
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{name}\n\n| | precision | decoding | sampling | scoring | update | peak GB |")
    print("|---|---|---|---|---|---|---|")
    for key in arguments.settings:
        for precision in arguments.precisions:
            policy = make_policy(precision, SETTINGS[key].get("lora"))
            found: dict[bool, list[list[float]]] = {True: [], False: []} if DEVICE == "cuda" else {False: []}
            for number in range(arguments.rounds + 1):
                for is_replayed, rounds in found.items():
                    with mock.patch.dict(os.environ, {"KLIMB_CUDA_GRAPHS": "" if is_replayed else "off"}):
                        rounds.append(measure(policy, SETTINGS[key], number))
            for is_replayed, rounds in found.items():
                *seconds, peak = (statistics.median(column) for column in zip(*rounds[1:], strict=True))
                shown = " | ".join(f"{part:.3f}" for part in seconds)
                way = "replayed" if is_replayed else "called"
                print(f"| {key} | {precision} | {way} | {shown} | {peak / 1e9:.2f} |", flush=True)
            del policy


if __name__ == "__main__":
    main()
