"""Run by TRL's own Python: the gradients of its trainers' losses with respect to the tokens' log-probs.

Reads JSON from standard input: arrays, and for each case the trainer and its options. Writes the gradients as JSON.
"""

import collections
import json
import sys
from types import SimpleNamespace

import torch

USUAL = {
    "beta": 0.0,
    "loss_type": "grpo",
    "importance_sampling_level": "token",
    "epsilon_low": 0.2,
    "epsilon_high": 0.2,
    "delta": None,
    "use_bias_correction_kl": True,
    "max_completion_length": 4,
    "use_vllm": False,
    "off_policy_mask_threshold": None,
}


def trainer_of(kind, options, log_probs):
    """A trainer that has what its loss reads, and takes the log-probs as they are given."""
    from trl.trainer.grpo_trainer import GRPOTrainer
    from trl.trainer.rloo_trainer import RLOOTrainer

    trainer = object.__new__({"grpo": GRPOTrainer, "rloo": RLOOTrainer}[kind])
    chosen = USUAL | options
    arguments = SimpleNamespace(
        delta=chosen.pop("delta"),
        use_bias_correction_kl=chosen.pop("use_bias_correction_kl"),
        sapo_temperature_pos=1.0,
        sapo_temperature_neg=1.05,
        vespo_k_pos=2.0,
        vespo_lambda_pos=3.0,
        vespo_k_neg=3.0,
        vespo_lambda_neg=2.0,
        steps_per_generation=1,
    )
    accelerator = SimpleNamespace(
        num_processes=1,
        gather=lambda x: x,
        gather_for_metrics=lambda x: x,
        reduce=lambda x, reduction: x,  # noqa: ARG005
    )
    # Entropies are for metrics alone; the logits' pass is the caller's.
    scores = lambda *_, **__: (log_probs, torch.zeros_like(log_probs), None)  # noqa: E731
    vars(trainer).update(
        **chosen,
        args=arguments,
        accelerator=accelerator,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        top_entropy_quantile=1.0,
        aux_loss_enabled=False,
        vllm_importance_sampling_correction=True,
        _entropy_bonus_enabled=False,
        _metrics={"train": collections.defaultdict(list)},
        _get_per_token_logps_and_entropies=scores,
    )
    return trainer


def gradient(case, arrays):
    """The gradient of the loss of a case."""
    log_probs = arrays["log_probs"].clone().requires_grad_()
    mask = arrays["mask"]
    inputs = {
        "prompt_ids": torch.zeros(len(mask), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(mask), 1, dtype=torch.long),
        "completion_ids": torch.zeros(mask.shape, dtype=torch.long),
        "completion_mask": mask,
        "advantages": arrays["advantages"],
        "old_per_token_logps": arrays["old_log_probs"],
        "old_logps": (arrays["old_log_probs"] * mask).sum(1),
        "ref_per_token_logps": arrays["ref_log_probs"],
        "importance_sampling_ratio": torch.tensor(case["sampler_weights"], dtype=torch.float64)
        if "sampler_weights" in case
        else None,
        "num_items_in_batch": mask.sum(),
    }
    trainer_of(case["trainer"], case["options"], log_probs)._compute_loss(None, inputs).backward()
    return log_probs.grad.tolist()


def main():
    """Answer one request."""
    request = json.load(sys.stdin)
    arrays = {name: torch.tensor(values, dtype=torch.float64) for name, values in request["arrays"].items()}
    found = {name: gradient(case, arrays) for name, case in request["cases"].items()}
    print("gradients:" + json.dumps(found))  # noqa: T201  what it is run for


if __name__ == "__main__":
    main()
