"""The card of a learned reward: the README.md beside its weights, in the hub's format."""

from pathlib import Path
from typing import Any

from klimb.config.reward import RewardConfig
from klimb.io.show import redact
from klimb.model.hub import base_metadata, front_matter, table
from klimb.reward.learn.results import RewardResult
from klimb.version import __version__


def draw_card(result: RewardResult, config: RewardConfig) -> str:
    """Make the card; it names no rater, quotes no text, and holds no path of this machine."""
    known, name = base_metadata(config.base), Path(config.base).name
    metadata: dict[str, Any] = {
        **known,
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["klimb", "reward-model", "rlhf", "preference"],
    }
    found = result.held_out
    tested = "cross-validation over prompts" if result.is_crossed else "held-out prompts"
    interval = f"{found.accuracy:.1%} [{found.accuracy_low:.1%}, {found.accuracy_high:.1%}]"
    results = (
        ("pairwise accuracy, with its 95 % interval", interval),
        ("pairs", f"{found.num_pairs:,}, {found.num_clear:,} of them no tie"),
        ("negative log-likelihood, nats per pair", f"{found.nll:.3f} (always a tie: {found.coin:.3f})"),
        ("accuracy of preferring the longer text", f"{found.length_accuracy:.1%}"),
    )
    options = (
        ("feedback", ", ".join(_file_name(source) for source in config.feedback)),
        ("method", config.method),
        ("seed", config.seed),
    )
    parts = [
        front_matter(metadata),
        f"# Reward model on {name}, learned by klimb",
        f"A Bradley–Terry model with ties on `{known['base_model'] or name}`, learned from what people preferred with "
        f"klimb {__version__}. It has one output, the score: higher is preferred.",
        f"## Results, by {tested}",
        table(("measure", "value"), results),
        result.verdict,
        "## Options",
        table(("option", "value"), options),
        "```sh\nklimb train --model MODEL --prompts prompts.jsonl --reward THIS-FOLDER --out runs/tuned\n```",
    ]
    return redact("\n\n".join(parts) + "\n")


def _file_name(source: str) -> str:
    return redact(source).rstrip("/").rsplit("/", 1)[-1].split("?")[0]
