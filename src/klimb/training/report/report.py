"""A run's report: one self-contained page, made from the run's folder alone."""

from pathlib import Path
from typing import Any

from klimb.config.train import TrainConfig
from klimb.errors import ConfigError, RunFolderError
from klimb.io.atomic import write_file
from klimb.io.page import render
from klimb.reward.load import PEOPLE
from klimb.rl.declaration import declare
from klimb.training.evaluate.estimates import points_along
from klimb.training.evaluate.summary import Summary, is_complete, summarise
from klimb.training.people import assess_raters
from klimb.training.report.figures import draw_figures
from klimb.training.report.weights import draw_value_figures, draw_weight_figures
from klimb.training.storage.folder import RunFolder, standing


def write_report(folder: RunFolder) -> Path:
    """Write `report.html` of a run, finished or not, and return its path.

    Raises:
        RunFolderError: The folder lacks what the report is made from.
    """
    options = folder.read_config()
    try:
        config = TrainConfig.from_dict(options)
    except (KeyError, TypeError, ConfigError) as error:
        raise RunFolderError(
            f"{folder.path / 'config.json'}: not options of this version of klimb: {error}"
        ) from error
    metrics = folder.read("metrics")
    if not metrics:
        raise RunFolderError(f"{folder.path / 'metrics.jsonl'}: empty; the run took no step")
    evaluations = folder.read("evaluations")
    summary = _summary(folder, config, evaluations)
    has_reward = set(config.reward) != {PEOPLE}
    page = render(
        "klimb.training.report",
        "report.html.jinja",
        config=config,
        options=options,
        declaration=declare(config),
        earlier=_earlier_options(folder),
        figures=[
            *draw_figures(
                metrics,
                summary,
                config.judges,
                points_along(evaluations, config.judges),
                has_reward=has_reward,
            ),
            *draw_weight_figures(metrics),
            *draw_value_figures(metrics),
        ],
        has_reward=has_reward,
        summary=summary,
        metrics=metrics,
        num_failed=sum(row.get("reward_failures", 0) for row in metrics),
        num_skipped=sum(row["reward"] is None for row in metrics),
        raters=assess_raters(folder.path) if config.asks_people else None,
        seconds={
            phase: sum(row["seconds"].get(phase, 0.0) for row in metrics) / len(metrics)
            for phase in dict.fromkeys(phase for row in metrics for phase in row["seconds"])
        },
    )
    write_file(folder.report, page)
    return folder.report


def _earlier_options(folder: RunFolder) -> dict[int, dict[str, Any]]:
    """Options that were others at first: by the steps that were taken with them, each with what it was."""
    earlier: dict[int, dict[str, Any]] = {}
    for entry in standing(folder.read_resumed()):
        for name, (old, _) in entry["changes"].items():
            if entry["step"] > 0:
                earlier.setdefault(entry["step"], {}).setdefault(name, old)
    return earlier


def _summary(folder: RunFolder, config: TrainConfig, evaluations: list[dict[str, Any]]) -> Summary | None:
    if not is_complete(evaluations):
        return None
    return summarise(
        evaluations,
        are_held_out=config.eval_prompts is not None,
        judges=config.judges,
        best=folder.read_best(),
    )
