"""The numbers of a comparison as a reader sees them, on the terminal and on the page."""

import math
from collections.abc import Sequence

from klimb.pairwise.results import ComparisonResult
from klimb.pairwise.tally import Tally


def in_rows(tallies: Sequence[Tally]) -> list[tuple[str, list[str]]]:
    """The rows of a table with a column for each judge."""
    rows = [
        ("comparisons", [f"{t.num_comparisons:,}" for t in tallies]),
        ("A wins", [_count(t.wins_a) for t in tallies]),
        ("B wins", [_count(t.wins_b) for t in tallies]),
        ("ties", [_count(t.ties) for t in tallies]),
        ("  of them both bad", [_count(t.both_bad) for t in tallies]),
        ("not judged", [f"{t.num_left_out:,}" for t in tallies]),
        ("  of them skipped", [f"{t.num_skipped:,}" for t in tallies]),
        ("win rate of A", [_share(t.win_rate) for t in tallies]),
        ("95 % interval, over prompts", [_interval(t) for t in tallies]),
        ("the longer wins", [_share(t.longer_wins) for t in tallies]),
    ]
    optional = ("  of them both bad", "not judged", "  of them skipped")
    return [(name, values) for name, values in rows if name not in optional or set(values) != {"0"}]


def lengths(result: ComparisonResult) -> list[str]:
    """What the completions are like, in sentences."""
    sentences = [
        f"{letter} writes {side.mean_tokens:.1f} tokens, {side.mean_characters:.0f} characters per completion"
        + (f"; {side.num_empty:,} are empty" if side.num_empty else "")
        for letter, side in (("A", result.a), ("B", result.b))
    ]
    if result.num_same:
        sentences.append(f"In {result.num_same:,} comparisons both wrote the same text, which is a tie")
    return sentences


def _count(value: float) -> str:
    """A number of comparisons, which has parts where people differ."""
    rounded = round(value, 1) + 0.0  # no minus before a zero
    return f"{rounded:,.0f}" if rounded == int(rounded) else f"{rounded:,.1f}"


def _share(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def _interval(judged: Tally) -> str:
    return "" if math.isnan(judged.low) else f"{judged.low:.3f} to {judged.high:.3f}"
