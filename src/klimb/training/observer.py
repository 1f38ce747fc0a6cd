"""The observer interface, through which a run reports to files, a terminal or a tracker."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from klimb.config.train import TrainConfig
    from klimb.rl.declaration import Declaration
    from klimb.rl.guards import Finding
    from klimb.rl.rollout import Rollout
    from klimb.training.evaluate.best import BestSoFar
    from klimb.training.evaluate.estimates import Rows
    from klimb.training.evaluate.summary import Summary
    from klimb.training.preflight.preflight import Preflight
    from klimb.training.storage.folder import RunFolder


class Observer:
    """Receives each event of a run, in order; each method does nothing until a subclass overrides it.

    Weights, random numbers and checkpoints of a run do not depend on its observers. An exception of an observer ends
    the run as any other does, at a state from which it resumes.
    """

    def message(self, line: str) -> None:
        """A line for a person, such as how far a long piece of work is."""

    def model_loading(self, model: str) -> None:
        """The model is about to be loaded."""

    def run_resumed(self, sentences: Sequence[str]) -> None:
        """An interrupted run resumes; `sentences` say from where, and what differs."""

    def run_started(self, config: "TrainConfig", declaration: "Declaration", facts: dict[str, str]) -> None:
        """Everything is loaded, and the run is about to begin."""

    def preflight_finished(self, preflight: "Preflight", *, with_memory: bool = False) -> None:
        """The checks before the first step were made."""

    def evaluation_started(self, when: str, num_prompts: int) -> None:
        """The policy is about to be evaluated `before` or `after` training."""

    def policy_evaluated(self, rows: "Rows", *, is_best: bool = False) -> None:
        """The policy was evaluated; `rows` are its lines of `evaluations.jsonl`."""

    def step_finished(self, metrics: dict[str, Any], rollout: "Rollout") -> None:
        """A step was taken; `metrics` is its line of `metrics.jsonl`."""

    def guards_alarmed(self, findings: Sequence["Finding"], measure: str | None) -> None:
        """Guards found something new after a step, or took the measure that is named."""

    def steps_stopped(self) -> None:
        """No more steps follow; called at every end, also after an error."""

    def best_chosen(self, best: "BestSoFar", num_steps: int) -> None:
        """The steps are over, and the best weights are kept."""

    def run_interrupted(self, num_steps: int) -> None:
        """The run was stopped by a signal after so many steps; it can be resumed."""

    def run_finished(self, folder: "RunFolder", summary: "Summary") -> None:
        """The model is written, and the policy was evaluated for the last time."""

    def run_closed(self) -> None:
        """The run is over in this process, however it ended; called once, last."""


class Observers(Observer):
    """Several observers as one: each event goes to all, in the order in which they are given."""

    def __init__(self, *observers: Observer) -> None:
        for event in (name for name in vars(Observer) if not name.startswith("_")):
            setattr(self, event, _to_all([getattr(observer, event) for observer in observers]))


def _to_all(methods: Sequence[Callable[..., None]]) -> Callable[..., None]:
    def tell(*arguments: Any, **named: Any) -> None:
        for method in methods:
            method(*arguments, **named)

    return tell
