"""A small transformer, trained with nothing but `rlhf_weight_update` on its flattened parameters.

It writes one of 16 words of two letters; each word has a reward. Per-sample gradients come from
`klimb.log_prob_gradients`. With every word reachable the best distribution is known,
π* ∝ π_ref · exp(r/β), and so is the best objective, β · log E_ref[exp(r/β)].

python examples/small_transformer.py
"""

import itertools

import torch

import klimb

BETA, LR, NUM_SAMPLES, NUM_STEPS = 0.3, 1.0, 64, 150
WORDS = torch.tensor(list(itertools.product(range(4), repeat=2)))
REWARDS = (WORDS[:, 0] == 2).double() + 0.5 * (WORDS[:, 1] == WORDS[:, 0]).double()


class Writer(torch.nn.Module):
    """One attention layer over a start token and the letters so far."""

    def __init__(self) -> None:
        super().__init__()
        self.letters = torch.nn.Embedding(5, 8)
        self.places = torch.nn.Embedding(2, 8)
        self.attention = torch.nn.Linear(8, 24)
        self.out = torch.nn.Linear(8, 4)

    def forward(self, letters: torch.Tensor) -> torch.Tensor:
        """Logits of the letter after each of (T,) letters, (T, 4)."""
        length = letters.shape[-1]
        x = self.letters(letters) + self.places(torch.arange(length))
        query, key, value = self.attention(x).chunk(3, dim=-1)
        scores = (query @ key.mT) / 8**0.5 + torch.full((length, length), -torch.inf).triu(1)
        return self.out(x + torch.softmax(scores, -1) @ value)


def log_prob(model: Writer, word: torch.Tensor) -> torch.Tensor:
    """Log π of a word, letter by letter after the start token, 4."""
    before = torch.cat([torch.tensor([4]), word[:-1]])
    return torch.log_softmax(model(before), -1).gather(1, word[:, None]).sum()


def main() -> tuple[float, float, float]:
    """Train, print the objective before, after and at best, and return the three."""
    torch.manual_seed(0)
    model = Writer().double()
    reference = torch.stack([log_prob(model, word) for word in WORDS]).detach()

    def objective() -> float:
        policy = torch.stack([log_prob(model, word) for word in WORDS]).detach()
        return float(policy.exp() @ REWARDS - BETA * klimb.exact_kl(policy, reference))

    before = objective()
    for _ in range(NUM_STEPS):
        policy = torch.stack([log_prob(model, word) for word in WORDS]).detach()
        drawn = torch.multinomial(policy.exp(), NUM_SAMPLES, replacement=True)
        weights = klimb.rlhf_weight_update(
            weights=torch.nn.utils.parameters_to_vector(model.parameters()).detach(),
            rewards=REWARDS[drawn],
            policy_log_probs=policy[drawn],
            ref_log_probs=reference[drawn],
            log_prob_grads=torch.cat(list(klimb.log_prob_gradients(model, log_prob, (WORDS[drawn],)))),
            beta=BETA,
            lr=LR,
        )
        torch.nn.utils.vector_to_parameters(weights, model.parameters())
    after = objective()
    best = BETA * float(torch.logsumexp(reference + REWARDS / BETA, 0))
    print(f"objective before {before:.3f}, after {NUM_STEPS} steps {after:.3f}, the best there is {best:.3f}")
    return before, after, best


if __name__ == "__main__":
    main()
