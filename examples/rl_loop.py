"""Fine-tune a language model by RLOO with a KL penalty, in a loop of one's own.

python examples/rl_loop.py                               (SmolLM2-135M-Instruct, fetched the first time)
python examples/rl_loop.py --model FOLDER --num-steps 4

For each completion y of a prompt x

    k  = log π(y) − log π_ref(y)                  its KL estimate
    r̃  = r − β k                                  its reward, less the KL's price
    Â  = r̃ − mean of the group's other r̃          its advantage (leave one out)
    w ← w + lr · (1/N) Σ Â ∇ log π(y)             the step, by AdamW

`klimb.train` does the same with evaluation, checkpoints, guards and a report.
"""

import argparse
from pathlib import Path

import klimb

BETA, LR, GROUP_SIZE = 0.05, 1e-5, 8
PROMPTS = [
    f"The {noun} {verb}"
    for noun in ("hotel room", "film", "meal", "weather", "train", "teacher")
    for verb in ("was", "seemed", "turned out to be")
]


def reward(completions: list[str], **_: object) -> list[float]:
    """Like sentences that end within the completion, and short ones."""
    return [float(text.strip().endswith(".")) - len(text) / 200 for text in completions]


def main() -> None:
    """Take some steps and save the model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--num-steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("runs/rl_loop"))
    arguments = parser.parse_args()

    policy = klimb.Policy.load(arguments.model)
    optimizer = klimb.Optimizer(policy, LR)
    for step in range(arguments.num_steps):
        prompts = [PROMPTS[(4 * step + place) % len(PROMPTS)] for place in range(4)]
        batch = klimb.rollout(
            policy, reward, prompts, group_size=GROUP_SIZE, max_new_tokens=24, seed=0, step=step
        )
        adjusted = klimb.adjusted_rewards(batch.rewards, batch.kl, BETA)  # (B, G)
        advantages = klimb.leave_one_out(adjusted)  # (B, G), constants
        score_weights = advantages.reshape(-1) / len(batch)  # c of  Σ c ∇ log π(y)
        stats = optimizer.step(batch.completions, score_weights)
        print(
            f"step {step + 1}/{arguments.num_steps}  reward {batch.rewards.mean():+.3f}  KL {batch.kl.mean():.2f}  "
            f"gradient {stats.grad_norm:.3f}  sampler gap {stats.sampler_gap_mean:.1e}",
            flush=True,
        )
    policy.save(arguments.out)
    print(policy.generate("The museum was", n=2, max_new_tokens=24), arguments.out, sep="\n")


if __name__ == "__main__":
    main()
