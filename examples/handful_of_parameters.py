"""A policy with a handful of parameters, trained with nothing but `rlhf_weight_update`.

Five possible answers, a reward for each, a softmax over five numbers. The best policy is known:
π* ∝ π_ref · exp(r/β). Sampled steps come near it.

python examples/handful_of_parameters.py
"""

import numpy as np

import klimb

BETA, LR, NUM_SAMPLES, NUM_STEPS = 0.5, 0.5, 256, 400
REWARDS = np.array([0.0, 0.2, 1.0, 0.5, -0.5])
REFERENCE = np.log(np.array([0.4, 0.3, 0.1, 0.1, 0.1]))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probs of a softmax policy."""
    return logits - np.log(np.sum(np.exp(logits)))


def main() -> float:
    """Train, print policy and optimum side by side, and return the largest difference."""
    rng = np.random.default_rng(0)
    logits = REFERENCE.copy()
    for _ in range(NUM_STEPS):
        log_probs = log_softmax(logits)
        answers = rng.choice(5, size=NUM_SAMPLES, p=np.exp(log_probs))
        logits = klimb.rlhf_weight_update(
            weights=logits,
            rewards=REWARDS[answers],
            policy_log_probs=log_probs[answers],
            ref_log_probs=REFERENCE[answers],
            log_prob_grads=np.eye(5)[answers] - np.exp(log_probs),  # ∇ log π(y) of a softmax
            beta=BETA,
            lr=LR,
        )
    policy, optimum = np.exp(log_softmax(logits)), np.exp(log_softmax(REFERENCE + REWARDS / BETA))
    print("answer  reference  policy  optimum")
    for answer in range(5):
        print(
            f"{answer:>6}  {np.exp(REFERENCE[answer]):>9.3f}  {policy[answer]:>6.3f}  {optimum[answer]:>7.3f}"
        )
    return float(np.abs(policy - optimum).max())


if __name__ == "__main__":
    main()
