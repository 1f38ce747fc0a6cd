"""The command `klimb` and its verbs. Each verb imports its code when it runs, so that `klimb --help` is fast."""

import itertools
import sys
import traceback
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any

import tyro

from klimb.cli.options import (
    Check,
    Compare,
    Demo,
    FeedbackExport,
    FeedbackImport,
    FeedbackPrioritise,
    FeedbackShow,
    FeedbackVerbs,
    Label,
    Report,
    RewardScore,
    RewardTrain,
    RewardVerbs,
    Train,
    Update,
    Verb,
)
from klimb.config.names import meant_by, present_value
from klimb.config.pairwise import CompareConfig, LabelConfig
from klimb.config.reward import RewardConfig
from klimb.config.train import TrainConfig, present_name, read_options, read_run_options
from klimb.errors import ConfigError, KlimbError, MissingExtraError, RankError
from klimb.io.progress import tell
from klimb.io.show import safe
from klimb.scale.launch import (
    enter_rank,
    is_rank,
    is_restarted,
    is_speaker,
    launch,
    leave_rank,
    require_ranks,
)
from klimb.version import __version__
from klimb.world import require_admissible

_ARGUMENTS_OR_DATA = 2  # exit code of bad input, as of a bad command line
_NOT_BETTER_THAN_CHANCE = 3
_INTERRUPTED = 130
_OF_TRAIN_ALONE = ("resume", "accept", "from_step", "ranks", "max_restarts")
_OF_FEEDBACK = frozenset(
    ("alembic", "fastapi", "markdown_it", "pydantic", "sqlalchemy", "starlette", "uvicorn")
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; that of one of several ranks is as its launcher expects it."""
    code = _main(argv)
    join = sys.modules.get("klimb.scale.join")  # loaded by a run
    return leave_rank(code, ranks_agree=join is not None and join.ranks_agree)


def _main(argv: Sequence[str] | None) -> int:
    """Run the command line and return its exit code.

    0; 2 for bad input; 3 for a reward that was learned and does not beat chance; 130 or 143 when interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    sys.excepthook = _show_traceback
    if arguments[:1] == ["--version"]:
        print(f"klimb {__version__}")  # noqa: T201
        return 0
    is_debugging = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        enter_rank()
        verb: Any = tyro.cli(
            Verb,  # pyright: ignore[reportArgumentType]  tyro takes unions of annotated types
            prog="klimb",
            description="Fine-tune model weights from human feedback with a KL-penalised policy gradient. "
            "--debug, anywhere, shows the traceback of an error; --version prints klimb's version.",
            args=_with_run_options(_with_restart(_with_file_options(_with_present_names(arguments)))),
            config=(tyro.conf.ConsolidateSubcommandArgs,),
        )
        try:
            return _run_or_launch(verb, arguments)
        except ModuleNotFoundError as error:
            extra = "feedback" if (error.name or "").split(".")[0] in _OF_FEEDBACK else "train"
            raise MissingExtraError(
                f"this needs the {extra} extra, which has {error.name}: pip install 'klimb[{extra}]'"
            ) from error
    except KlimbError as error:
        if is_debugging:
            raise
        message = safe("\n".join([f"klimb: {error}", *getattr(error, "__notes__", [])]))
        _print_error(message, of_any_rank=isinstance(error, RankError))
        return _ARGUMENTS_OR_DATA
    except OSError as error:  # a full disk, a folder that may not be written
        if is_debugging:
            raise
        print(safe(f"klimb: {error}"), file=sys.stderr)  # noqa: T201
        return _ARGUMENTS_OR_DATA
    except KeyboardInterrupt as interruption:
        if is_debugging:
            raise
        _print_error(f"\nklimb: {str(interruption) or 'interrupted; what was written stays'}")
        return getattr(interruption, "exit_code", _INTERRUPTED)


def _print_error(message: str, *, of_any_rank: bool = False) -> None:
    """Print what ended the command; of several ranks, what ended all is printed by the first."""
    if of_any_rank or is_speaker():
        print(message, file=sys.stderr)  # noqa: T201


def _show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Show an error that was not handled without secrets, and without what would steer the terminal."""
    sys.stderr.write(safe("".join(traceback.format_exception(kind, error, trace))))


def _run_or_launch(verb: Any, arguments: Sequence[str]) -> int:
    """Run one verb in this process, or as several ranks where it asks for them."""
    if isinstance(verb, Train) and verb.ranks > 1 and not is_rank():
        return _launch(verb, arguments)
    return _run(verb)


def _run(
    verb: Train | Check | Update | Report | Demo | RewardVerbs | Label | Compare | FeedbackVerbs,
) -> int:
    """Run one verb, and return the exit code."""
    match verb:
        case RewardVerbs(verb=chosen):
            return _run_reward(chosen)
        case Train():
            _train(verb)
        case Check():
            TrainConfig(**vars(verb))  # before PyTorch is loaded: a wrong option is answered at once
            from klimb import api

            api.check(**vars(verb))
        case Update():
            from klimb.cli.update import update_file

            weights = update_file(verb.step, verb.beta, verb.lr, verb.output, verb.log_prob_grads)
            print(f"{verb.output}: {weights.shape[0]} weights, {weights.dtype}")  # noqa: T201
        case Report():
            from klimb.training.report.report import write_report
            from klimb.training.storage.folder import RunFolder

            print(write_report(RunFolder.open(verb.run)))  # noqa: T201
        case Demo():
            from klimb.demo.demo import run_demo

            run_demo(verb.out, verb.seed, label=verb.label)
        case FeedbackVerbs(verb=chosen):
            _run_feedback(chosen)
        case Label():
            config = LabelConfig(**vars(verb))
            from klimb.pairwise.label import label

            label(config)
        case Compare():
            config = CompareConfig(**vars(verb))
            from klimb.pairwise.compare import compare
            from klimb.pairwise.console import show_comparison

            show_comparison(compare(config))
    return 0


def _launch(verb: Train, arguments: Sequence[str]) -> int:
    """Start the ranks of a run, the options of which can be."""
    require_ranks(verb.ranks, verb.max_restarts)
    options = {name: value for name, value in vars(verb).items() if name not in _OF_TRAIN_ALONE}
    config = TrainConfig(**options)
    require_admissible(verb.ranks, config.num_slices or verb.ranks, config.prompts_per_step)
    return launch(arguments, verb.ranks, verb.max_restarts)


def _train(verb: Train) -> None:
    options = dict(vars(verb))
    require_ranks(options.pop("ranks"), options.pop("max_restarts"))
    run, accept, from_step = options.pop("resume"), options.pop("accept"), options.pop("from_step")
    for name, value in (("accept", accept or None), ("from_step", from_step)):
        if run is None and value is not None:
            raise ConfigError(f"{name}: only used with --resume; add it, or leave {name} out")
    if run is not None and options["out"] != run:
        raise ConfigError(f"out: a resumed run stays in its folder {run}, got {options['out']}")
    TrainConfig(**options)  # before PyTorch is loaded: a wrong option is answered at once
    from klimb import api

    if run is None:
        api.train(**options)
    else:
        api.Run(options.pop("out")).resume(accept=accept, from_step=from_step, **options)


def _run_reward(verb: RewardTrain | RewardScore) -> int:
    match verb:
        case RewardTrain():
            config = RewardConfig(**vars(verb))
            from klimb.reward.learn.console import show_reward
            from klimb.reward.learn.training import train_reward

            result = train_reward(config, tell)
            show_reward(result)
            return 0 if result.held_out.beats_chance else _NOT_BETTER_THAN_CHANCE
        case RewardScore():
            from klimb.reward.score import score_file

            print(score_file(verb.texts, verb.reward, verb.output, tell))  # noqa: T201
            return 0


def _run_feedback(verb: FeedbackImport | FeedbackExport | FeedbackShow | FeedbackPrioritise) -> None:
    from klimb.feedback.store.store import Store

    with Store.open(verb.store, must_exist=not isinstance(verb, FeedbackImport)) as store:
        match verb:
            case FeedbackImport():
                from klimb.feedback.sources import import_files

                options = {
                    name: value for name, value in vars(verb).items() if name not in ("files", "store")
                }
                print("\n".join(import_files(store, verb.files, **options).lines()))  # noqa: T201
            case FeedbackExport():
                from klimb.feedback.export import export_store

                print("\n".join(export_store(store, verb.form, verb.output, overwrite=verb.overwrite)))  # noqa: T201
            case FeedbackShow():
                from klimb.feedback.console import show_store

                show_store(store)
            case FeedbackPrioritise():
                from klimb.reward.learn.active import prioritise

                count = prioritise(store, verb.reward, tell)
                print(f"{verb.store}: {count:,} pairs in order, the most informative first")  # noqa: T201


def _with_present_names(arguments: list[str]) -> list[str]:
    """Replace former names of options by the present ones, and refuse what is no option with the nearest that is.

    Raises:
        ConfigError: There is no such option of the verbs that take those of a run.
    """
    if arguments[:2] == ["reward", "train"]:
        return _with_present_method(arguments)
    if arguments[:1] not in (["train"], ["check"]):
        return arguments
    known = {field.name for field in fields(Train if arguments[0] == "train" else Check)}
    named: list[str] = []
    for argument in arguments:
        flag, sign, value = argument.partition("=")
        if not flag.startswith("--") or flag in ("--help", "--config"):
            named.append(argument)
            continue
        name = flag[2:].replace("-", "_")
        no, bare = ("no-", name[3:]) if name.startswith("no_") and name not in known else ("", name)
        present = present_name(bare)
        if present not in known:
            meant = meant_by(bare, known)
            advice = (
                f"did you mean --{meant.replace('_', '-')}?" if meant else "klimb train --help lists them"
            )
            raise ConfigError(f"{flag}: no such option; {advice}")
        named.append(f"--{no}{present.replace('_', '-')}{sign}{value}")
    return named


def _with_present_method(arguments: list[str]) -> list[str]:
    """Replace a former name of a method of learning a reward by the present one, with a warning."""
    split = _split(arguments, "--method")
    place = split.index("--method") + 1 if "--method" in split else len(split)
    return [
        present_value("method", argument) if at == place else argument for at, argument in enumerate(split)
    ]


def _with_file_options(arguments: list[str]) -> list[str]:
    """Replace `--config FILE` by the options in the file that the command line does not give itself."""
    if arguments[:1] not in (["train"], ["check"]):
        return arguments
    split = _split(arguments, "--config")
    if "--config" not in split:
        return arguments
    place = split.index("--config")
    if place + 1 == len(split):
        raise ConfigError("--config: expected a TOML file after it")
    file, rest = Path(split[place + 1]), split[1:place] + split[place + 2 :]
    return [arguments[0], *_not_given(read_options(file), rest), *rest]


def _with_restart(arguments: list[str]) -> list[str]:
    """Let ranks that are started again, after one was lost, resume the run that they had begun."""
    split = _split(arguments, "--out")
    if not is_restarted() or arguments[:1] != ["train"] or "--resume" in _split(arguments, "--resume"):
        return arguments
    out = dict(itertools.pairwise(split)).get("--out")
    return (
        arguments
        if out is None or not (Path(out) / "config.json").is_file()
        else [*arguments, "--resume", out]
    )


def _with_run_options(arguments: list[str]) -> list[str]:
    """Add to `--resume RUN` the options that the run has and the command line does not give itself."""
    split = _split(arguments, "--resume")
    if arguments[:1] != ["train"] or "--resume" not in split:
        return arguments
    place = split.index("--resume")
    if place + 1 == len(split):
        raise ConfigError("--resume: expected the folder of a run after it")
    run, usual = split[place + 1], {field.name: field.default for field in fields(TrainConfig)}
    options = {
        name: value
        for name, value in (read_run_options(Path(run)) | {"out": run}).items()
        if (tuple(value) if isinstance(value, list) else value) != usual[name]
    }
    return ["train", *_not_given(options, split[1:]), *split[1:]]


def _split(arguments: list[str], flag: str) -> list[str]:
    """Take `flag=value` apart."""
    return [
        part
        for argument in arguments
        for part in (argument.split("=", 1) if argument.startswith(f"{flag}=") else [argument])
    ]


def _not_given(options: dict[str, Any], arguments: list[str]) -> list[str]:
    """Write as arguments those options that these do not give themselves."""
    given = {argument.split("=")[0].replace("_", "-") for argument in arguments if argument.startswith("--")}
    added: list[str] = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if not given & {flag, flag.replace("--", "--no-", 1)}:
            added += _as_arguments(flag, value)
    return added


def _as_arguments(flag: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    values = value if isinstance(value, list) else [value]
    return [flag, *map(str, values)]
