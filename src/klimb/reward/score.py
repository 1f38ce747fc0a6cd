"""Scores for a file of texts: `klimb reward score`."""

import json
from pathlib import Path

from klimb.errors import DataError
from klimb.files import write_file
from klimb.policy.clock import clock_at, current_moment
from klimb.reward.load import load_rewards
from klimb.reward.reward import Batch
from klimb.rows import read_rows
from klimb.text import problem_with

_AT_ONCE = 256  # texts handed to the rewards together


def score_file(file: Path, rewards: tuple[str, ...], output: Path) -> str:
    """Score each row of a file and write it, with the column `score`, as JSONL.

    Args:
        file: Rows with `completion` (or `text`) and perhaps `prompt`; their other columns go to the rewards too.
        rewards: As for `load_rewards`.
        output: Where to; replaced if it exists.

    Returns:
        What was done, in a line.

    Raises:
        DataError: A row cannot be read or has no text.
        RewardError: A reward cannot be loaded, or failed.
    """
    rows: list[dict[str, object]] = []
    for row in read_rows(file):
        if row.problem:
            raise DataError(f"{row.place}: {row.problem}")
        name = "completion" if "completion" in row.values else "text"
        if problem := problem_with(row.values.get(name)):
            raise DataError(f"{row.place}: {name}: {problem}")
        rows.append(row.values | {"completion": row.values[name]})
    if not rows:
        raise DataError(f"{file}: has no rows")
    judge = load_rewards(rewards)
    names = sorted(
        {name for row in rows for name in row} - {"prompt", "completion", "prompts", "completions"}
    )
    scores: list[float] = []
    moment = current_moment()  # one for all rows, where a reward's chat template writes the time
    for first in range(0, len(rows), _AT_ONCE):
        part = rows[first : first + _AT_ONCE]
        columns = {name: [row.get(name) for row in part] for name in names}
        prompts = [row.get("prompt") or "" for row in part]
        batch = Batch(prompts, [str(row["completion"]) for row in part], columns)  # pyright: ignore[reportArgumentType]
        with clock_at(moment):
            scores += judge(batch).complete().given
    lines = [
        json.dumps(row | {"score": score}, ensure_ascii=False) + "\n"
        for row, score in zip(rows, scores, strict=True)
    ]
    write_file(output, "".join(lines))
    mean = sum(scores) / len(scores)
    return (
        f"{output}: {len(rows):,} texts, mean score {mean:.3f}, from {min(scores):.3f} to {max(scores):.3f}"
    )
