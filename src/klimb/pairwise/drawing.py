"""Pairs are drawn in the background, while people judge those that are there already."""

import contextlib
import threading
from collections.abc import Iterable, Iterator, Sequence

from klimb.config.pairwise import LabelConfig
from klimb.data.prompts import PromptRow
from klimb.errors import KlimbError
from klimb.feedback.server.app import Stage
from klimb.feedback.store.queries import digest_of
from klimb.feedback.store.store import Store
from klimb.io.progress import Say
from klimb.model.clock import clock_at
from klimb.pairwise.candidates import (
    LabelPart,
    NamedModel,
    draw_label_parts,
    label_parts,
    moment_of,
)
from klimb.pairwise.console import in_lines
from klimb.training.storage.fingerprint import find_model
from klimb.training.storage.sources import files_of_model

_PATIENCE = 5.0  # seconds that a model's loading is given at the end
_SAVED = "All that you said is saved."


class _StoppedError(Exception):
    """The drawing was asked to stop."""


class PairDrawing:
    """Draws pairs in a thread of its own and puts them into a store, part by part; it runs inside a `with` block.

    A part is in the store whole, with a note that it is drawn, or not at all. So the same command continues where it
    was stopped, draws no part twice, and ends with the pairs that it would have drawn in one go. A part counts as
    drawn before where the model's files, the prompts and the options are those of that time.

    Attributes:
        turn: Held while the models compute. PyTorch and its threads serve one at a time well, and two badly.

    Args:
        store: Where the pairs go.
        models: One or two.
        rows: Prompts.
        config: How completions are drawn, and how many pairs of each prompt.
        say: Receives lines on progress and on what goes wrong.
    """

    def __init__(
        self,
        store: Store,
        models: Sequence[NamedModel],
        rows: Sequence[PromptRow],
        config: LabelConfig,
        say: Say,
    ) -> None:
        self.turn = threading.Lock()
        self._store, self._models, self._rows, self._config, self._say = store, models, rows, config, say
        self._parts = label_parts(models, len(rows), config)
        self._num_pairs = self._num_same = self._num_new = self._num_prompts = 0
        self._has_pairs, self._is_stopping = threading.Event(), threading.Event()
        self._is_drawing = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="klimb-drawing", daemon=True)

    def __enter__(self) -> "PairDrawing":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait_for_pairs(self) -> None:
        """Wait until there is something to judge, or nothing will come.

        Raises:
            KlimbError: Nothing could be drawn.
        """
        self._has_pairs.wait()
        if self._num_pairs == 0:
            self.raise_error()

    def stop(self) -> None:
        """Draw no further part, and wait for the one under way; Ctrl-C while it waits leaves that part out."""
        if self._is_stopping.is_set():
            return
        self._is_stopping.set()
        with contextlib.suppress(KeyboardInterrupt):
            if not self._is_drawing:
                self._thread.join(_PATIENCE)
                return
            self._say("finishing the pairs that are being drawn; Ctrl-C leaves them out")
            self._thread.join()

    def raise_error(self) -> None:
        """Raise what the drawing ended with, if it failed."""
        if self._error is not None:
            raise self._error

    def words(self) -> str:
        """What the page says beside the pairs; "" where all are drawn."""
        if self._error is not None:
            return "no more pairs come: drawing them failed"
        return f"up to {self._num_left:,} more are being drawn" if self._num_left else ""

    def rest(self) -> tuple[str, Stage]:
        """What the page says to a rater with no pair left, and whether more come."""
        if self._error is not None:
            reason = "because drawing them failed. The terminal in which klimb runs says why."
            return f"{_SAVED} No more pairs come, {reason}", "open"
        if self._num_left:
            drawn = f"{self._num_pairs:,} pairs are drawn so far; up to {self._num_left:,} more come by themselves."
            return f"{_SAVED} {drawn}", "coming"
        return _SAVED, "open"

    @property
    def _num_left(self) -> int:
        return (len(self._rows) - self._num_prompts) * self._config.num_pairs_per_prompt

    def _run(self) -> None:
        try:
            with clock_at(moment_of(self._models)):
                self._draw()
        except _StoppedError:
            if self._num_left:
                self._say(f"{self._num_left:,} pairs were not drawn; the same command draws them")
        except Exception as error:  # raised again in the thread that the program ends in
            self._error = error
            reason = str(error) if isinstance(error, KlimbError) else f"{type(error).__name__}: {error}"
            self._say(f"drawing pairs failed: {reason}")
        finally:
            self._is_drawing = False
            self._has_pairs.set()

    def _draw(self) -> None:
        missing = []
        for part in self._parts:
            found = self._store.drawn(self._digest(part))
            if found is None:
                missing.append(part)
            else:
                self._count(part, *found)
        if missing:
            drawn = draw_label_parts(self._models, self._rows, self._config, missing, self._watch, self._say)
            for part in self._in_turn(drawn):
                digest = self._digest(part.indices)
                self._num_new += self._store.add_drawn(digest, part.pairs, part.num_same)
                self._count(part.indices, len(part.pairs), part.num_same)
        dropped = f"; {self._num_same:,} were dropped: the same text twice" if self._num_same else ""
        self._say(f"{self._num_pairs:,} pairs, {self._num_new:,} of them new{dropped}")

    def _count(self, part: list[int], num_pairs: int, num_same: int) -> None:
        self._num_pairs += num_pairs
        self._num_same += num_same
        self._num_prompts += len(part)
        if num_pairs:
            self._has_pairs.set()

    def _in_turn(self, drawn: Iterator[LabelPart]) -> Iterator[LabelPart]:
        while True:
            with self.turn:
                part = next(drawn, None)
            if part is None:
                return
            yield part

    def _watch(self, places: range) -> Iterable[int]:
        for place in in_lines(places, self._say):
            if self._is_stopping.is_set():
                raise _StoppedError
            self._is_drawing = True
            yield place

    def _digest(self, part: list[int]) -> str:
        """Stand for all that decides which pairs a part has."""
        config = self._config
        options = [config.num_pairs_per_prompt, config.max_new_tokens, config.temperature, config.seed]
        options += [config.decoding] if config.decoding else []
        rows = [self._rows[index] for index in part]
        return digest_of(
            "label",
            [[model.name, _stamp(model)] for model in self._models],
            [*options, config.skip_special_tokens],
            [[index, row.prompt, repr(row.columns)] for index, row in zip(part, rows, strict=True)],
        )


def _stamp(model: NamedModel) -> list[list[str | int]]:
    """Stand for the content of a model's files: name, size and time of each, which takes no reading."""
    place = find_model(model.source)
    if place is None:
        return []
    found = sorted(files_of_model(place).items())
    return [[name, file.stat().st_size, file.stat().st_mtime_ns] for name, file in found]
