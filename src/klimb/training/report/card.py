"""The card of a fine-tuned model: the README.md beside its weights, in the hub's format."""

import math
from pathlib import Path
from typing import Any

from klimb.config.train import TrainConfig
from klimb.io.atomic import write_file
from klimb.io.show import redact, redacted
from klimb.model.hub import base_metadata, front_matter, table
from klimb.rl.declaration import declare
from klimb.training.evaluate.estimates import Estimate, short_name
from klimb.training.evaluate.summary import Summary
from klimb.training.storage.folder import RunFolder
from klimb.version import __version__

_OF_THIS_MACHINE = {"out", "device", "people_host", "people_port", "people_rater", "track", "track_project"}


def write_card(folder: RunFolder, summary: Summary) -> Path:
    """Write `model/README.md`, from the run's options and its summary; it holds no path of this machine and no time."""
    config = TrainConfig.from_dict(folder.read_config())
    write_file(folder.model / "README.md", redact(_card(config, summary)))
    return folder.model / "README.md"


def _card(config: TrainConfig, summary: Summary) -> str:
    declared, name = declare(config), short_name(config.model)
    known = base_metadata(config.model)
    metadata: dict[str, Any] = {
        **known,
        "library_name": "transformers",  # adapters are merged when a model is saved
        "pipeline_tag": "text-generation",
        "tags": ["klimb", "rlhf", "reinforcement-learning", "policy-gradient"],
    }
    held_out = "held-out prompts" if summary.are_held_out else "prompts that were trained on"
    return (
        "\n\n".join(
            [
                front_matter(metadata),
                f"# {name}, fine-tuned by klimb",
                f"Fine-tuned from `{known['base_model'] or name}` by a KL-penalised policy gradient with klimb "
                f"{__version__}.",
                "## Objective",
                _shortened("\n".join(f"- {sentence}" for sentence in declared.words), config),
                _shortened("```text\n" + "\n".join(declared.formulas) + "\n```", config),
                "## Data and reward",
                f"- Prompts: `{config.prompts.name}`, column `{config.prompt_column}`\n"
                f"- Reward: {', '.join(f'`{short_name(reward)}`' for reward in config.reward)}\n"
                f"- Held-out judges: {', '.join(f'`{short_name(judge)}`' for judge in config.judges) or 'none'}",
                "## Results",
                f"{summary.num_prompts} {held_out}, {summary.completions_per_prompt} completions each; mean ± 95 % "
                "interval over prompts.",
                table(("", "before", "after", "change"), _results(summary)),
                "## Options",
                table(("option", "value"), _options(config)),
            ]
        )
        + "\n"
    )


def _results(summary: Summary) -> list[tuple[str, ...]]:
    changes = [("reward", summary.before, summary.after, summary.gain)] if summary.has_reward else []
    changes += [(short_name(name), c.before, c.after, c.gain) for name, c in summary.judges.items()]
    rows = [(name, *map(_shown, estimates)) for name, *estimates in changes]
    if summary.kl is not None:
        rows.append(("KL from the base, nats per completion", "0", _shown(summary.kl), ""))
    rows.append(("length, tokens", f"{summary.length_before:.1f}", f"{summary.length_after:.1f}", ""))
    return rows


def _shown(estimate: Estimate) -> str:
    return "no opinion" if math.isnan(estimate.mean) else str(estimate)


def _shortened(text: str, config: TrainConfig) -> str:
    """The text with the last part of each path in place of the path."""
    for reward in config.reward:
        text = text.replace(reward, short_name(reward))
    return text


def _options(config: TrainConfig) -> list[tuple[str, str]]:
    options = {
        name: value for name, value in redacted(config.to_dict()).items() if name not in _OF_THIS_MACHINE
    }
    return [
        (f"`{name}`", _value(value)) for name, value in options.items() if value is not None and value != []
    ]


def _value(value: Any) -> str:
    values = value if isinstance(value, list) else [value]
    return ", ".join(short_name(part) if isinstance(part, str) else str(part) for part in values)
