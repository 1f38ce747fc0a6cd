"""`klimb.RewardModel`: fit a reward to feedback, score texts, save it."""

import contextlib
import html
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from klimb.config.keywords import RewardKeywords
from klimb.config.reward import RewardConfig
from klimb.config.values import typed_options
from klimb.data.objects import is_place, rows_of, write_rows
from klimb.errors import ArgumentError, ConfigError
from klimb.io.atomic import whole_folder
from klimb.io.page import in_notebook
from klimb.io.progress import Say, tell
from klimb.io.show import Text, quote
from klimb.policy.generate import as_prompts
from klimb.reward.reward import Batch, WeightedSum

if TYPE_CHECKING:
    from klimb.reward.classifier import ClassifierReward


class RewardModel:
    """A learned reward, by its folder: a model that AutoModelForSequenceClassification opens, and a report.

    Attributes:
        folder: Where it is.

    Args:
        folder: A sequence-classification model with one output: a folder, or a name of the hub.
        device: Where it runs; the first GPU if there is one, else the CPU, where None.
    """

    def __init__(self, folder: str | Path, *, device: str | None = None) -> None:
        self.folder = folder
        self._device = device

    def __repr__(self) -> str:
        return f"klimb.RewardModel({str(self.folder)!r})"

    @classmethod
    def fit(
        cls,
        feedback: Any,
        *,
        base: str | Path,
        out: str | Path | None = None,
        say: Say = tell,
        **options: Unpack[RewardKeywords],
    ) -> "RewardModel":
        """Fit a reward model to people's judgements.

        Args:
            feedback: A file of docs/feedback-formats.md, a store of `klimb label`, a list of these, or rows as
                dictionaries, a `datasets.Dataset` or a table, in any form that docs/feedback-formats.md lists.
            base: The model that reads the texts: a folder, a .gguf file or a name of the hub.
            out: The folder to write; one in the system's folder for temporary files where None.
            say: Receives a line about each piece of work.
            options: Any option of `klimb reward train` by its name with underscores, such as `criterion`.

        Returns:
            The reward. `verdict` says whether it beats chance; `klimb.train` refuses one that does not.

        Raises:
            KlimbError: Nothing can be learned, or an argument is wrong.
        """
        from klimb.reward.learn.training import train_reward

        folder = Path(tempfile.mkdtemp(prefix="klimb-")) / "reward" if out is None else Path(out).expanduser()
        with _feedback_places(feedback) as places:
            named = {"feedback": places, "base": str(base), "out": folder}
            config = RewardConfig(**typed_options(RewardConfig, {**options, **named}))
            result = train_reward(config, say)
        say(result.verdict)
        return cls(folder)

    @property
    def record(self) -> dict[str, Any]:
        """The content of `reward.json`: how it was learned; empty for a model that klimb did not learn."""
        try:
            return json.loads((Path(self.folder) / "reward.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    @property
    def beats_chance(self) -> bool | None:
        """Whether it orders held-out pairs better than chance; None where that was not tested by klimb."""
        return self.record.get("held_out", {}).get("beats_chance")

    @property
    def verdict(self) -> str | None:
        """A one-sentence verdict on its accuracy; None for a model that klimb did not learn."""
        return self.record.get("verdict")

    @property
    def report(self) -> Path:
        """The report, a page for the browser."""
        return Path(self.folder) / "report.html"

    def score(self, prompt: Text | Sequence[Text], completion: str | Sequence[str]) -> float | list[float]:
        """Score completions; higher is better.

        Args:
            prompt: A prompt, text or messages, or a list with one for each completion.
            completion: A completion, or a list of them.

        Returns:
            A number for one completion, a list for a list.

        Raises:
            ArgumentError: There are not as many prompts as completions.
            RewardError: A text cannot be read by the model.
        """
        texts = [completion] if isinstance(completion, str) else list(completion)
        prompts, is_one = as_prompts(prompt)
        if is_one:
            prompts = prompts * len(texts)
        if len(prompts) != len(texts):
            raise ArgumentError(
                f"prompt: expected one, or {len(texts)}, one for each completion, got {len(prompts)}"
            )
        total = WeightedSum([self.as_reward])(Batch(prompts, texts)).complete().given if texts else []
        return total[0] if isinstance(completion, str) else total

    def save(self, folder: str | Path) -> "RewardModel":
        """Copy it to another folder, and return the copy.

        Raises:
            ConfigError: The folder exists already, or this reward is a name of the hub.
        """
        target = Path(folder).expanduser()
        if target.exists():
            raise ConfigError(f"folder: {target} exists already; choose another")
        if not Path(self.folder).is_dir():
            raise ConfigError(f"folder: {self.folder} is not a local folder that can be copied")
        with whole_folder(target) as unfinished:
            shutil.copytree(self.folder, unfinished, dirs_exist_ok=True)
        return RewardModel(target, device=self._device)

    @cached_property
    def as_reward(self) -> "ClassifierReward":
        """The model, loaded on first use."""
        from klimb.reward.classifier import ClassifierReward

        return ClassifierReward(str(self.folder), device=self._device)

    def _repr_html_(self) -> str:
        """The report, in a notebook."""
        return in_notebook(self.report) if self.report.is_file() else f"<pre>{html.escape(repr(self))}</pre>"


@contextlib.contextmanager
def _feedback_places(feedback: Any) -> Iterator[tuple[str, ...]]:
    """Name feedback as options do; rows are written to a file meanwhile."""
    if is_place(feedback):
        yield (str(feedback),)
        return
    if isinstance(feedback, list | tuple) and feedback and all(map(is_place, feedback)):
        yield tuple(map(str, feedback))
        return
    if isinstance(feedback, list | tuple) and any(map(is_place, feedback)):
        raise ConfigError(f"feedback: expected files or rows, got both: {quote(feedback)}")
    with tempfile.TemporaryDirectory(prefix="klimb-") as temporary:
        file = Path(temporary) / "feedback.jsonl"
        write_rows(file, rows_of("feedback", feedback))
        yield (str(file),)
