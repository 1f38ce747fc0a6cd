"""What the sampling options mean for the declared objective, in words and formulas; empty for the defaults."""

from klimb.config.train import TrainConfig


def describe_sampling(config: TrainConfig) -> list[str]:
    """Say in sentences which distribution the policy is, and when completions end."""
    words: list[str] = []
    if _is_truncated(config):
        words += _truncation_words(config)
    if config.min_new_tokens:
        words.append(
            f"The first {config.min_new_tokens} tokens of a completion are drawn from the policy without its end "
            "tokens, and have their log-probs under that distribution; the reference leaves the end tokens out, too."
        )
    if config.stop:
        words.append(
            f"A completion also ends with the token that completes one of {', '.join(map(repr, config.stop))}: its "
            "tokens are all trained on, and the text that is rewarded ends before the stop string."
        )
    if config.system_prompt is not None:
        words.append(
            "Prompts that have no message of the system begin with the system prompt that was given."
        )
    return words


def formulas_of_sampling(config: TrainConfig) -> list[str]:
    """Write π where it is not the model's own tempered distribution."""
    if not (_is_truncated(config) or config.min_new_tokens):
        return []
    steps: list[str] = []
    if config.min_new_tokens:
        steps.append(f"not an end token where t ≤ {config.min_new_tokens}")
    if config.top_k is not None:
        steps.append(f"the {config.top_k} most likely")
    if config.top_p < 1:
        steps.append(f"of these the fewest with probability ≥ {config.top_p:g}")
    if config.min_p > 0:
        steps.append(f"of these p(v) ≥ {config.min_p:g} max p")
    return [
        f"S_it = the tokens kept in sampling: {'; '.join(steps)}",
        "π(y_it) = p(y_it) / Σ_{v∈S_it} p(v),   π_ref(y_it) = p_ref(y_it) / Σ_{v∈S_it} p_ref(v)",
    ]


def _is_truncated(config: TrainConfig) -> bool:
    return config.top_k is not None or config.top_p < 1 or config.min_p > 0


def _truncation_words(config: TrainConfig) -> list[str]:
    options = {"top_k": config.top_k, "top_p": config.top_p, "min_p": config.min_p}
    usual = {"top_k": None, "top_p": 1.0, "min_p": 0.0}
    chosen = ", ".join(
        f"{name} {value:g}" for name, value in options.items() if value is not None and value != usual[name]
    )
    words = [
        f"π is the distribution that tokens are drawn from: only the most likely tokens ({chosen}), renormalised. "
        "Log-probs, entropies and the KL are those of this distribution, and the reference is restricted to the same "
        "tokens.",
        "Which tokens are kept is recorded in sampling and held constant: tokens that were left out get no gradient of "
        "their own, and the gradient leaves out how the set changes with the weights.",
    ]
    if config.algorithm.ratio != "none":
        words.append(
            "Ratios compare both policies on the tokens that were kept in sampling, so none is infinite or 0; they are "
            "importance weights for the policy restricted to these tokens, not for one that would keep others by now."
        )
    return words
