"""What TRL hands to a reward function beside texts: how far the run is, and hooks by which it logs numbers."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from klimb.errors import ArgumentError


@dataclass(frozen=True)
class TrainerState:
    """How far a run is, with the names of `transformers.TrainerState`.

    Attributes:
        epoch: Passes through the prompts so far.
        global_step: Steps so far.
        max_steps: Steps of the whole run; 0 where there is no run.
        logging_steps: Steps from one line of metrics to the next.
        eval_steps: Steps from one evaluation to the next; None where there are none along the run.
        save_steps: Steps from one checkpoint to the next.
        train_batch_size: Prompts of a step.
        num_train_epochs: Passes through the prompts of the whole run, rounded up.
        num_input_tokens_seen: Not counted: 0.
        total_flos: Not counted: 0.
        log_history: Not kept: empty.
        best_metric: Not kept: None.
        best_global_step: Not kept: None.
        best_model_checkpoint: Not kept: None.
        is_local_process_zero: True.
        is_world_process_zero: True.
        is_hyper_param_search: False.
        trial_name: None.
        trial_params: None.
    """

    epoch: float = 0.0
    global_step: int = 0
    max_steps: int = 0
    logging_steps: int = 1
    eval_steps: int | None = None
    save_steps: int = 0
    train_batch_size: int | None = None
    num_train_epochs: int = 0
    num_input_tokens_seen: int = 0
    total_flos: float = 0.0
    log_history: list[dict[str, float]] = field(default_factory=list)
    best_metric: float | None = None
    best_global_step: int | None = None
    best_model_checkpoint: str | None = None
    is_local_process_zero: bool = True
    is_world_process_zero: bool = True
    is_hyper_param_search: bool = False
    trial_name: str | None = None
    trial_params: Mapping[str, Any] | None = None


class RewardLog:
    """Takes what reward functions log of a batch: columns, one value per completion, and numbers of the batch.

    Args:
        num_completions: N.
    """

    def __init__(self, num_completions: int) -> None:
        self._num_completions = num_completions
        self._metrics: dict[str, list[float]] = {}
        self._columns: dict[str, list[Any]] = {}

    @property
    def metrics(self) -> dict[str, float | None]:
        """The mean of each number that was logged; None where it is not finite, which JSON cannot hold."""
        means = {name: math.fsum(values) / len(values) for name, values in self._metrics.items()}
        return {name: mean if math.isfinite(mean) else None for name, mean in means.items()}

    @property
    def columns(self) -> dict[str, list[Any]]:
        """The columns that were logged, (N,) each, as JSON types; None where nothing was."""
        return dict(self._columns)

    def log_metric(self, name: str, value: Any) -> None:
        """TRL's hook for a number of the whole batch; several of a name are averaged.

        Raises:
            ArgumentError: The value is no number.
        """
        try:
            number = float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ArgumentError(f"log_metric({name!r}): expected a number, got {value!r}") from error
        self._metrics.setdefault(str(name), []).append(number)

    def log_extra(self, column: str, values: Iterable[Any]) -> None:
        """TRL's hook for a column of the completions.

        Raises:
            ArgumentError: There are not as many values as completions.
        """
        given = list(values)
        if len(given) != self._num_completions:
            raise ArgumentError(
                f"log_extra({column!r}): expected {self._num_completions} values, one per completion, got {len(given)}"
            )
        self._columns[str(column)] = [_plain(value) for value in given]

    def take(self, other: "RewardLog", first: int = 0) -> None:
        """Add what was logged of some of the completions, the first of which has the index `first`."""
        for name, values in other._metrics.items():
            self._metrics.setdefault(name, []).extend(values)
        for name, values in other._columns.items():
            column = self._columns.setdefault(name, [None] * self._num_completions)
            column[first : first + len(values)] = values


def _plain(value: Any) -> Any:
    """A value as JSON types: numbers out of arrays and tensors, and the text of what is neither."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if callable(getattr(value, "tolist", None)):
        return _plain(value.tolist())
    return str(value)
