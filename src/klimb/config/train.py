"""Every option of a run, in one place: the command line, the files and the docs are made from it."""

import json
import math
import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from klimb.config.address import refuse_secrets
from klimb.config.names import BASELINES, FORMER, unknown
from klimb.config.publish import TRACKERS, require_repository
from klimb.config.sections import (
    SECTIONS,
    AlgorithmOptions,
    CheckpointOptions,
    DataOptions,
    EvaluationOptions,
    GuardOptions,
    ModelOptions,
    OptimizerOptions,
    PeopleOptions,
    PreflightOptions,
    PublishOptions,
    RankOptions,
    RewardOptions,
    SamplingOptions,
    ValueOptions,
)
from klimb.errors import ConfigError
from klimb.io.progress import warn


@dataclass(frozen=True, kw_only=True)
class TrainConfig(  # dataclasses take fields from the last base to the first
    PublishOptions,
    RankOptions,
    PreflightOptions,
    GuardOptions,
    CheckpointOptions,
    EvaluationOptions,
    OptimizerOptions,
    ValueOptions,
    AlgorithmOptions,
    SamplingOptions,
    PeopleOptions,
    RewardOptions,
    DataOptions,
    ModelOptions,
):
    """The options of a run, all sections together."""

    def __post_init__(self) -> None:
        # These two are concrete from here on: they were options before presets were.
        preset = self.preset
        baseline = BASELINES.get(self.baseline or "", self.baseline) or preset.baseline
        object.__setattr__(self, "baseline", baseline)
        object.__setattr__(self, "beta", preset.beta if self.beta is None else self.beta)
        for name in _AT_LEAST_ONE:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: expected at least 1, got {value}")
        for name in (
            "beta",
            "uncertainty_penalty",
            "lr",
            "weight_decay",
            "warmup_steps",
            "adam_epsilon",
            "seed",
            "refit_every",
        ):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise ConfigError(f"{name}: expected a finite number of at least 0, got {value}")
        for name in _ABOVE_ZERO:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name}: expected a finite number above 0, got {value}")
        if self.seed >= 2**64:
            raise ConfigError(f"seed: expected a number below 2^64, got {self.seed}")
        if self.reward_weights is not None and not all(map(math.isfinite, self.reward_weights)):
            raise ConfigError(f"reward_weights: expected finite numbers, got {self.reward_weights}")
        if not all(0 <= decay < 1 for decay in self.adam_betas):
            raise ConfigError(f"adam_betas: expected two numbers from 0 up to below 1, got {self.adam_betas}")
        self._check_publishing()
        self._check_combinations()

    @property
    def measures_kl(self) -> bool:
        """Whether the KL from the reference is needed: for the penalty, for `kl_target`, or for a guard."""
        return self.algorithm.beta > 0 or self.kl_target is not None or self.max_kl is not None

    def _check_publishing(self) -> None:
        for name in self.track:
            if name not in TRACKERS:
                raise ConfigError(f"track: expected one of {', '.join(TRACKERS)}, got {name!r}")
        if len(set(self.track)) != len(self.track):
            raise ConfigError(f"track: each tracker may be named once, got {', '.join(self.track)}")
        if not self.track_project.strip():
            raise ConfigError("track_project: expected a name, got an empty one")
        if self.push_to_hub is not None:
            require_repository(self.push_to_hub)

    def _check_combinations(self) -> None:
        self.check_decoding(self.max_new_tokens)
        self.check_objective(self.prompts_per_step, self.completions_per_prompt)
        if self.num_slices is not None and self.prompts_per_step % self.num_slices:
            raise ConfigError(
                f"num_slices: each has as many whole prompts, so expected a divisor of prompts_per_step "
                f"{self.prompts_per_step}, got {self.num_slices}"
            )
        if self.asks_people and (self.num_slices or 1) > 1:
            raise ConfigError(
                "num_slices: people see the completions of a whole step on one page; leave it out, and use one rank"
            )
        baseline = self.algorithm.baseline
        self.check_value(
            has_value=baseline == "value",
            objective=self.objective,
            baseline=baseline,
            num_steps=self.num_steps,
        )
        if self.lora_rank is not None and self.num_trainable_layers is not None:
            raise ConfigError("lora_rank and num_trainable_layers exclude each other: choose one")
        if self.lora_alpha is not None and self.lora_rank is None:
            raise ConfigError("lora_alpha: only used with lora_rank; add it, or leave lora_alpha out")
        if self.max_duplicate_share is not None and self.max_duplicate_share >= 1:
            raise ConfigError(
                f"max_duplicate_share: expected a share below 1, got {self.max_duplicate_share}"
            )
        if not 0 <= self.max_failed <= 1:
            raise ConfigError(f"max_failed: expected a share from 0 to 1, got {self.max_failed}")
        refuse_secrets((*self.reward, *self.judges))
        self._check_rules()
        self._check_choice()
        self._check_people()

    def _check_rules(self) -> None:
        if self.lr_schedule != "constant" and self.warmup_steps >= self.num_steps:
            raise ConfigError(
                f"lr_schedule: falls after warm-up, and warmup_steps {self.warmup_steps} leaves none of "
                f"the {self.num_steps} steps; lower warmup_steps, or use --lr-schedule constant"
            )
        if self.kl_target is None:
            return
        if self.beta == 0:
            raise ConfigError(
                "kl_target: adapts beta by multiplying it, so beta cannot be 0; set --beta to a starting value such as "
                "0.05"
            )
        batch = self.completions_per_step
        if self.kl_horizon < batch:
            raise ConfigError(
                f"kl_horizon: expected at least the {batch} completions of a step, got {self.kl_horizon}: "
                "beta would jump from step to step"
            )

    def _check_people(self) -> None:
        for name in ("people_pairs", "refit_every"):
            if getattr(self, name) and (not self.asks_people or len(self.reward) == 1):
                raise ConfigError(
                    f"{name}: only used with people and a learned reward; expected --reward people FOLDER, "
                    f"got {', '.join(self.reward)}"
                )
        if not self.asks_people:
            return
        if self.baseline == "greedy":
            raise ConfigError(
                "baseline: greedy needs the reward of a single completion, and people compare several; choose "
                "another baseline"
            )
        if self.completions_per_prompt < 2:
            raise ConfigError(
                "completions_per_prompt: people compare completions of one prompt, so expected at least 2, got "
                f"{self.completions_per_prompt}"
            )
        if self.reward == ("people",) and self.keep_best == "reward":
            raise ConfigError(
                "keep_best: people do not judge in evaluations; name one of the judges, or leave keep_best out"
            )
        try:
            _ = self.people_page
        except ConfigError as error:
            raise ConfigError(f"people_{error}") from error

    def _check_choice(self) -> None:
        judges = ", ".join(self.judges) or "there are none"
        if self.keep_best is not None and self.keep_best not in ("reward", *self.judges):
            raise ConfigError(
                f"keep_best: expected reward or one of the judges ({judges}), got {self.keep_best!r}"
            )
        if self.keep_best is not None and self.eval_every is None:
            raise ConfigError("keep_best: needs --eval-every N, the steps between evaluations")
        if self.patience is not None and self.keep_best is None:
            raise ConfigError("patience: needs --keep-best JUDGE, the judge that selects the best weights")

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON types."""
        return {
            name: str(value)
            if isinstance(value, Path)
            else list(value)
            if isinstance(value, tuple)
            else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, options: dict[str, Any]) -> "TrainConfig":
        """Rebuild a configuration from what `to_dict` gave."""
        values: dict[str, Any] = {
            FORMER.get(key, key): tuple(value) if isinstance(value, list) else value
            for key, value in options.items()
        }
        paths = {
            key: Path(values[key]) for key in ("prompts", "out", "eval_prompts") if values[key] is not None
        }
        values.update(paths)
        return cls(**values)


_ABOVE_ZERO = (
    "temperature",
    "max_grad_norm",
    "lora_alpha",
    "max_logprob_mismatch",
    "kl_target",
    "max_kl",
    "min_entropy",
    "max_entropy",
    "max_duplicate_share",
    "max_grad_spike",
    "reward_timeout",
    "rank_timeout",
)
_AT_LEAST_ONE = (
    "eval_completions_per_prompt",
    "eval_every",
    "patience",
    "num_trainable_layers",
    "lora_rank",
    "prompts_per_step",
    "completions_per_prompt",
    "max_new_tokens",
    "micro_batch_size",
    "num_slices",
    "num_steps",
    "checkpoint_every",
    "keep_checkpoints",
    "kl_horizon",
    "people_pairs",
)


def read_options(file: Path) -> dict[str, Any]:
    """Read options from a TOML file: the option names with underscores, flat or in tables named as the sections are.

    Raises:
        ConfigError: The file is missing or not TOML, or has an option or a section that does not exist.
    """
    try:
        options = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot read the options: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not a TOML file: {error}") from error
    known = {field.name for field in fields(TrainConfig)}
    flat: dict[str, Any] = {}
    for name, value in options.items():
        of_section = value if isinstance(value, dict) else {name: value}
        if isinstance(value, dict):
            _check_section(file, name, value)
        for key, setting in of_section.items():
            present = present_name(key)
            if present not in known:
                raise ConfigError(f"{file}: {unknown(key, known)}")
            if present in flat:
                raise ConfigError(f"{file}: {present}: occurs twice; remove one")
            flat[present] = setting
    return flat


def present_name(name: str) -> str:
    """Return an option's name; a former one is replaced, with a warning."""
    if name in FORMER:
        warn(f"the option {name} is now called {FORMER[name]}; the former name will go with the next version")
    return FORMER.get(name, name)


def _check_section(file: Path, name: str, options: dict[str, Any]) -> None:
    """Raise unless a table of a TOML file is a section, and its keys are of that section."""
    if name not in SECTIONS:
        raise ConfigError(f"{file}: unknown section [{name}]; the sections are {', '.join(SECTIONS)}")
    own = {field.name for field in fields(SECTIONS[name])}
    for key in options:
        present = FORMER.get(key, key)
        home = next((section for section, kind in SECTIONS.items() if present in _names_of(kind)), None)
        if present not in own and home is not None:
            raise ConfigError(f"{file}: {key}: is in [{name}], but belongs in [{home}]; move it")


def _names_of(section: type) -> set[str]:
    return {field.name for field in fields(section)}


def _inputs_of(run: Path, options: dict[str, Any]) -> dict[str, str]:
    """Where a run's own inputs lie if its folder was moved since it began."""
    inputs = Path(str(options.get("out"))) / "inputs"
    return {
        name: str(run / "inputs" / Path(value).relative_to(inputs))
        for name in ("model", "prompts", "eval_prompts")
        if isinstance(value := options.get(name), str) and Path(value).is_relative_to(inputs)
    }


def read_run_options(run: Path) -> dict[str, Any]:
    """Read the options that a run has, from the `config.json` in its folder.

    Raises:
        ConfigError: It is not the folder of a run, or has an option that does not exist.
    """
    file = run / "config.json"
    try:
        options: Any = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{run}: not the folder of a run: cannot read config.json: {error.strerror}"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{file}: not JSON: {error}") from error
    if not isinstance(options, dict):
        raise ConfigError(f"{file}: expected the options of a run, got another kind of JSON")
    options.pop("resumed", None)
    options = {FORMER.get(name, name): value for name, value in options.items()}
    options |= _inputs_of(run, options)
    known = {field.name for field in fields(TrainConfig)}
    if others := options.keys() - known:
        raise ConfigError(
            f"{file}: unknown option {min(others)!r}; the run was started by another version of klimb"
        )
    return options
