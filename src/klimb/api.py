"""The Python API: train a policy, fit a reward model, compare two models. The command line calls the same functions."""

import contextlib
import html
import tempfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from klimb.config.keywords import CompareKeywords, ResumeKeywords, TrainKeywords
from klimb.config.names import FORMER
from klimb.config.pairwise import PEOPLE, CompareConfig
from klimb.config.train import TrainConfig, present_name, read_run_options
from klimb.config.values import typed_options
from klimb.data.objects import is_place
from klimb.errors import ConfigError
from klimb.io.page import in_notebook
from klimb.io.progress import Say, tell
from klimb.pairwise.results import ComparisonResult
from klimb.policy.policy import Policy
from klimb.reward.load import NO_FUNCTIONS, OBJECT, Functions
from klimb.scale.join import joined
from klimb.training.inputs import inputs_in, name_rewards, write_model, write_prompts
from klimb.training.observer import Observer
from klimb.training.preflight.preflight import Preflight
from klimb.training.report.notebook import NotebookDisplay, is_in_notebook
from klimb.training.run import check as run_check
from klimb.training.run import summary_of
from klimb.training.run import train as run_train
from klimb.training.signals import RunInterrupted
from klimb.training.storage.folder import RunFolder

if TYPE_CHECKING:
    from klimb.training.evaluate.summary import Summary


def train(
    model: Any,
    prompts: Any,
    reward: Any,
    *,
    out: str | Path | None = None,
    tokenizer: Any = None,
    observer: Observer | None = None,
    **options: Unpack[TrainKeywords],
) -> "Run":
    """Fine-tune a language model by a KL-penalised policy gradient.

        g = (1/N) Σ_i Â_i ∇ log π(y_i | x_i)

    with Â_i made of the rewards less β times each completion's KL estimate, as the run itself prints.

    Args:
        model: A name of the Hugging Face hub, a folder, a .gguf file, a `klimb.Policy`, or a transformers model with
            its tokenizer. A model that is an object is copied into the run's folder and not changed.
        prompts: A list of texts, of conversations (lists of messages) or of dictionaries, a `datasets.Dataset`, a
            table of pandas or polars, `hf:org/name:split`, or a file. Prompts that are no file are copied into the
            run's folder; other columns than the prompt go to the reward by their names.
        reward: A function `f(prompts, completions, **columns)` that returns a number for each completion, as TRL calls
            it, also an `async` one; a name such as "vader"; a `RewardModel` or its folder; an http(s) address; or a
            list of such, which are added with `reward_weights`.
        out: The run's folder; one in the system's folder for temporary files where None, named in the result.
        tokenizer: The tokenizer of a transformers model; loaded from where the model came from where None.
        observer: Receives the events of the run; a display in the terminal, or in the notebook, where None.
        options: Any option of `klimb train` by its name with underscores, such as `num_steps=20`, `lr=1e-6`; with
            `eval_prompts` and `judges` objects are taken as for `prompts` and `reward`. See docs/options.md.

    Returns:
        The run, finished.

    Raises:
        KlimbError: An argument, a file, a reward or the model is wrong; the message says what, where and what to do.
        RunInterrupted: The run was interrupted; a checkpoint was written, and `klimb.Run(out).resume()` resumes it.
    """
    with _configured(model, prompts, reward, tokenizer, {**options, "out": out}) as (config, functions):
        return _run(config, functions, observer)


def check(
    model: Any,
    prompts: Any,
    reward: Any,
    *,
    out: str | Path | None = None,
    tokenizer: Any = None,
    observer: Observer | None = None,
    **options: Unpack[TrainKeywords],
) -> Preflight:
    """Make the checks that `train` makes before its first step, and leave no folder behind.

    Args:
        model: As for `train`, like all other arguments.
        prompts: The prompts.
        reward: The reward.
        out: The run's folder.
        tokenizer: The tokenizer of a transformers model.
        observer: Receives what the checks found; a display in the terminal where None.
        options: Any option of `klimb train`.

    Returns:
        What each check found, and the memory that the run is predicted to take.

    Raises:
        KlimbError: Something would keep the run from beginning; the message says what, where and what to do.
    """
    with (
        tempfile.TemporaryDirectory(prefix="klimb-") as temporary,
        _configured(
            model, prompts, reward, tokenizer, {**options, "out": out}, Path(temporary) / "inputs"
        ) as (
            config,
            functions,
        ),
    ):
        return run_check(config, observer, functions=functions)


@contextlib.contextmanager
def _configured(
    model: Any, prompts: Any, reward: Any, tokenizer: Any, options: dict[str, Any], inputs: Path | None = None
) -> Iterator[tuple[TrainConfig, Functions]]:
    """Make the configuration of a run; inputs that are objects are written to `inputs`, by default in its folder."""
    options = _with_present_names(options)
    out = options.pop("out")
    folder = Path(tempfile.mkdtemp(prefix="klimb-")) / "run" if out is None else Path(out).expanduser()
    rewards, functions = name_rewards("reward", reward)
    judges, of_judges = name_rewards("judges", options.pop("judges", ()), rewards)
    given = {"model": model, "prompts": prompts, "eval_prompts": options.pop("eval_prompts", None)}
    named = {"reward": rewards, "judges": judges, "out": folder}
    typed = typed_options(TrainConfig, {**options, **named})  # before anything is written
    RunFolder.require_free(folder)
    column = typed.get("prompt_column", "prompt")
    with inputs_in(
        inputs or RunFolder(folder).inputs, tokenizer=tokenizer, prompt_column=column, **given
    ) as places:
        yield TrainConfig(**typed, **typed_options(TrainConfig, places)), functions | of_judges


class Run:
    """A run of `klimb train`, by its folder.

    Attributes:
        folder: Its files; docs/files.md describes them.

    Args:
        folder: The folder of a run that has begun, finished or not.
        functions: Rewards and judges that were given as objects, by their names, so that `resume` has them.

    Raises:
        RunFolderError: It is not the folder of a run.
    """

    def __init__(self, folder: str | Path, functions: Functions = NO_FUNCTIONS) -> None:
        self.folder = Path(folder).expanduser()
        self._files = RunFolder.find(self.folder)
        self._functions = functions

    def __repr__(self) -> str:
        return f"klimb.Run({str(self.folder)!r})"

    @cached_property
    def config(self) -> TrainConfig:
        """The options of the run."""
        return TrainConfig.from_dict(read_run_options(self.folder) | {"out": str(self.folder)})

    @property
    def summary(self) -> "Summary":
        """Reward, judges, KL and length before and after, with 95 % intervals over prompts.

        Raises:
            RunFolderError: The run has not been evaluated yet.
        """
        return summary_of(self.config, self._files)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One dictionary for each step; docs/metrics.md describes its fields."""
        return self._files.read("metrics")

    @property
    def completions(self) -> list[dict[str, Any]]:
        """One dictionary for each completion that was drawn in training."""
        return self._files.read("completions")

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """One dictionary for each completion that was drawn in an evaluation."""
        return self._files.read("evaluations")

    @property
    def model(self) -> Path:
        """The fine-tuned model: a folder that transformers opens."""
        return self._files.model

    @property
    def report(self) -> Path:
        """The report, a page for the browser."""
        return self._files.report

    @cached_property
    def policy(self) -> Policy:
        """The fine-tuned policy, loaded on first use."""
        return Policy.load(self.model, has_reference=False, trust_remote_code=self.config.trust_remote_code)

    def resume(
        self,
        *,
        reward: Any = None,
        judges: Any = None,
        accept: Sequence[str] = (),
        from_step: int | None = None,
        observer: Observer | None = None,
        **options: Unpack[ResumeKeywords],
    ) -> "Run":
        """Resume the run, to the same bits as if it had not been interrupted.

        A function that is a reward takes part: klimb compares its source text with that of the run's start. What the
        function calls, reads or closes over is not compared, and what it remembers from call to call is not stored.

        Args:
            reward: The functions among the rewards, where the run was begun in another process.
            judges: The functions among the judges.
            accept: Names of content that may differ from what the run began with, as the refusal names them.
            from_step: Go back to the checkpoint after so many steps, and drop what came later.
            observer: Receives the events of the run.
            options: Options that may change in a resumed run, such as `num_steps`.

        Raises:
            KlimbError: Something differs that may not, or is missing; the message says what, and what to do.
            RunInterrupted: As for `train`.
        """
        functions, began = dict(self._functions), read_run_options(self.folder) | {"out": str(self.folder)}
        for name, given in (("reward", reward), ("judges", judges)):
            names, found = name_rewards(name, [] if given is None else given)
            functions |= found
            if len(found) < len(names):  # names beside functions: all of them are meant
                began[name] = names
        config = TrainConfig(**typed_options(TrainConfig, began | _with_present_names({**options})))
        _require_functions(config, functions)
        return _run(config, functions, observer, resume=True, accept=accept, from_step=from_step)

    def _repr_html_(self) -> str:
        """The report, in a notebook."""
        if not self.report.is_file():
            return f"<pre>{html.escape(repr(self))}, without a report yet</pre>"
        return in_notebook(self.report)


def compare(
    a: Any,
    b: Any,
    prompts: Any,
    by: Any = PEOPLE,
    *,
    out: str | Path | None = None,
    say: Say = tell,
    **options: Unpack[CompareKeywords],
) -> ComparisonResult:
    """Sample answers of two models to the same prompts, and have rewards or people judge which are better.

    Args:
        a: A `Run`, a `Policy`, a folder, a .gguf file, a name of the hub, or a transformers model with its tokenizer
            as a pair.
        b: The model that it is compared with.
        prompts: As for `train`.
        by: "people", who judge on a page in the browser, or rewards as for `train`; several judge each for itself.
        out: The page to write, which ends in .html; in the system's folder for temporary files where None.
        say: Receives a line about each piece of work.
        options: Any option of `klimb compare` by its name with underscores, such as `completions_per_prompt`.

    Returns:
        The result: `win_rate` of `a`, `tallies` with intervals, `verdicts` in words, the page.

    Raises:
        KlimbError: An argument, a file, a model or a reward is wrong, or nobody judged.
    """
    from klimb.pairwise.compare import compare as run_compare

    judges, functions = name_rewards("by", by)
    page = Path(tempfile.mkdtemp(prefix="klimb-")) / "compare.html" if out is None else Path(out).expanduser()
    with tempfile.TemporaryDirectory(prefix="klimb-") as temporary:
        named = {
            "model_a": _model_place(a, Path(temporary) / "a"),
            "model_b": _model_place(b, Path(temporary) / "b"),
            "prompts": write_prompts(
                "prompts", prompts, Path(temporary), options.get("prompt_column", "prompt")
            ),
            "by": judges,
            "out": page,
        }
        config = CompareConfig(**typed_options(CompareConfig, {**options, **named}))
        return run_compare(config, say, functions=functions)


def _run(config: TrainConfig, functions: Functions, observer: Observer | None, **how: Any) -> Run:
    if observer is None and is_in_notebook():
        observer = NotebookDisplay()
    try:
        with joined(config.rank_timeout) as world:
            run_train(config, observer, functions=functions, world=world, **how)
    except RunInterrupted as interruption:
        if functions:
            interruption.add_note(f"or in Python: klimb.Run({str(config.out)!r}).resume(reward=…)")
        raise
    return Run(config.out, functions)


def _require_functions(config: TrainConfig, functions: Functions) -> None:
    named = (*config.reward, *config.judges)
    for name in named:
        if name.startswith(OBJECT) and name not in functions:
            raise ConfigError(
                f"reward: the run was started in Python with the function {name.removeprefix(OBJECT)}; give it again: "
                f"klimb.Run({str(config.out)!r}).resume(reward={name.removeprefix(OBJECT)})"
            )
    for name in functions:
        if name not in named:
            raise ConfigError(
                f"reward: the run was started with {', '.join(named)}, got {name.removeprefix(OBJECT)}"
            )


def _with_present_names(options: dict[str, Any]) -> dict[str, Any]:
    named = {present_name(name): value for name, value in options.items()}
    if len(named) < len(options):
        twice = next(FORMER[name] for name in options if FORMER.get(name) in options)
        raise ConfigError(f"{twice}: given twice, once by its former name; remove one")
    return named


def _model_place(model: Any, folder: Path) -> str:
    """Name a model as options do; one that is an object is written into a folder."""
    if isinstance(model, Run):
        return str(model.folder)
    if is_place(model):
        return str(model)
    write_model(model, None, folder)
    return str(folder)
