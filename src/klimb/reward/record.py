"""A run's record of people's judgements: written before each step and never changed afterwards.

The store may change later: a pair that was skipped is asked again of others. So a step that is taken again after an
interruption, and a reward that is refitted, go by this record.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from klimb.errors import RunFolderError
from klimb.feedback.records import Choice
from klimb.io.atomic import append_text, shorten
from klimb.io.show import Text


@dataclass(frozen=True)
class JudgedPair:
    """Two completions of a prompt, and all their judgements when the step was taken.

    Attributes:
        prompt: What both answer.
        first: One completion.
        second: The other.
        said: What people said, in the order in which they did.
    """

    prompt: Text
    first: str
    second: str
    said: tuple[Choice, ...] = ()

    @property
    def texts(self) -> tuple[str, str, str]:
        """What makes it this pair."""
        return json.dumps(self.prompt, sort_keys=True), self.first, self.second


class JudgementRecord:
    """A file with a line a step; where a step is there twice, the run went back, and the last counts.

    Args:
        file: The file; made with the first line.

    Raises:
        RunFolderError: It is not as a run writes it.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._steps: dict[int, list[JudgedPair]] = {}
        if file.is_file():
            self._read()

    def add(self, step: int, pairs: Sequence[JudgedPair]) -> None:
        """Write down what a step learns from; it is on the disk when this returns."""
        line = {"step": step, "pairs": [asdict(pair) for pair in pairs]}
        append_text(self._file, json.dumps(line, ensure_ascii=False) + "\n")
        self._steps[step] = list(pairs)

    def find(self, step: int, pairs: Sequence[JudgedPair]) -> list[list[Choice]] | None:
        """Return the judgements of these pairs when the step was taken; None if it was not, or had other pairs."""
        known = self._steps.get(step)
        if known is None or [pair.texts for pair in known] != [pair.texts for pair in pairs]:
            return None
        return [list(pair.said) for pair in known]

    def before(self, step: int) -> list[tuple[int, list[JudgedPair]]]:
        """The steps before this one, in their order, each with its pairs."""
        return [(number, self._steps[number]) for number in sorted(self._steps) if number < step]

    def _read(self) -> None:
        content = self._file.read_bytes()
        end = content.rfind(b"\n") + 1  # what follows was cut off by a crash
        for number, line in enumerate(content[:end].splitlines(), start=1):
            try:
                row = json.loads(line)
                pairs = [JudgedPair(**pair | {"said": tuple(pair["said"])}) for pair in row["pairs"]]
                self._steps[int(row["step"])] = pairs
            except (ValueError, KeyError, TypeError) as error:
                raise RunFolderError(
                    f"{self._file}:{number}: damaged or edited: {type(error).__name__}: {error}; restore the file, "
                    "or remove it: then klimb reads the judgements from the store"
                ) from error
        if end < len(content):
            shorten(self._file, end)
