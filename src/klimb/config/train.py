"""Every option of a run, in one place: the command line, the files and the docs are made from it."""

import json
import math
import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from klimb.config.address import refuse_secrets
from klimb.config.serving import ServeOptions
from klimb.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The options of a run."""

    model: str
    """What to fine-tune: a Hugging Face folder, a .gguf file, or a hub name."""

    prompts: Path
    """Prompts to train on: a .jsonl, .csv or .parquet file."""

    reward: tuple[str, ...]
    """One or more rewards: vader, module:function, file.py:function, the http(s) address of a service, a
    sequence-classification model with one output, or people, who compare each step's completions on a page while the
    run waits. Several are added up."""

    out: Path
    """The run's folder; it must not exist yet, or be empty."""

    reward_weights: tuple[float, ...] | None = None
    """Weight of each reward in the sum; 1 each by default."""

    judges: tuple[str, ...] = ()
    """Rewards that are asked about every completion and never trained on, named as the rewards are: where one of
    them turns down while the reward climbs, the policy has begun to please the reward alone."""

    caution: float = 0.0
    """How many times an ensemble's spread is taken off a reward model's score, so that the policy is not drawn to where
    its members disagree; 0 takes the model's own score."""

    accept_unproven_reward: bool = False
    """Train on a learned reward even if it does not beat chance on what people said, as its reward.json records."""

    max_failed: float = 0.1
    """Share of a step's, or of an evaluation's, completions whose reward may fail before the run stops. They are left
    out, so the rest is what is learned from: of a few the batch hardly changes; many mean that the reward is broken, or
    fails for one kind of completion, which the policy would then learn nothing against."""

    reward_timeout: float | None = None
    """Seconds that a reward which is a function may take for a batch, or a service for a request. None: a function may
    take as long as it likes, a service 60 s. With a limit a function runs in a thread other than the main one."""

    people_host: str = "127.0.0.1"
    """Address of the page with reward people. On any but a loopback one it is open to those with the printed link."""

    people_port: int = 8321
    """Port of that page."""

    people_rater: str | None = None
    """Name of the one person who judges on this machine; by default the page asks for a name."""

    people_per_pair: int = 1
    """Judgements wanted of each pair, by as many people."""

    people_pairs: int | None = None
    """Pairs of each step's completions that people are asked about: those on which the ensemble of the learned reward
    beside people disagrees most. Other completions take the learned reward alone. None: each completion is compared
    with its neighbours."""

    refit_every: int = 0
    """Steps after which the learned reward beside people is learned anew, from its head and what people said in this
    run until then; evaluations stay with the reward as it was at the start. 0: never."""

    prompt_column: str = "prompt"
    """Column of the prompts, plain text or chat messages; the other columns go to the reward."""

    eval_prompts: Path | None = None
    """Prompts to judge by, before and after, none of them a training prompt; by default the first 32 of those."""

    eval_completions_per_prompt: int = 4
    """Completions drawn for each prompt that is judged by."""

    eval_every: int | None = None
    """Steps between evaluations on the prompts that are judged by; one more follows the last step. None: only before
    and after."""

    keep_best: str | None = None
    """Judge, or `reward`, by whose mean on the prompts that are judged by the best weights are kept, those of the start
    among them; the model that is saved is then the best, not the last. Needs eval_every."""

    patience: int | None = None
    """Evaluations in a row without a new best after which the run stops; None: never. Needs keep_best."""

    num_trainable_layers: int | None = None
    """Train the last so many layers only; all by default."""

    lora_rank: int | None = None
    """Train a low-rank adapter of this rank instead of the weights themselves."""

    lora_alpha: float | None = None
    """Scale of the adapter; twice its rank by default, which keeps its learning rate rank-independent."""

    trust_remote_code: bool = False
    """Run Python code that comes with a model. Only for models whose makers you trust."""

    device: str | None = None
    """Where the model runs, such as cpu or cuda:1; the first GPU if there is one, else the CPU."""

    prompts_per_step: int = 8
    """Prompts in a batch."""

    completions_per_prompt: int = 4
    """Completions drawn for each prompt: its group. More give a better baseline."""

    max_new_tokens: int = 64
    """Most tokens of a completion, its end token included."""

    skip_special_tokens: Literal["chat", "all"] = "chat"
    """Special tokens that are left out of the texts of completions. chat: those that end, begin or pad a text and those
    that the chat template writes around turns; others, such as <think>, stay. all: every one, as TRL does."""

    temperature: float = 1.0
    """Of the distribution that is sampled, scored and trained; 1 is the model's own."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """What the model computes in; the weights that move are float32 in either case."""

    micro_batch_size: int | None = None
    """Completions that go through the model at once; all by default. Changes memory, and results only by rounding."""

    objective: Literal["reinforce"] = "reinforce"
    """What is ascended: reinforce is the plain policy gradient."""

    baseline: Literal["none", "batch_mean", "leave_one_out", "group_normalised"] = "leave_one_out"
    """What is subtracted from each reward; leave_one_out is unbiased and quiet."""

    beta: float = 0.05
    """KL coefficient: reward units that one nat away from the reference costs. At 0, without kl_target and max_kl, no
    reference is kept and no KL measured, which saves its memory and a pass over every batch."""

    kl_target: float | None = None
    """KL from the reference that beta is moved towards, in nats a completion: after each step beta grows where the KL
    was above, and shrinks where it was below. None: beta stays as it is."""

    kl_horizon: int = 500
    """Completions over which beta, where it is moved, changes by at most a fifth; over the 3,200 of a usual run it can
    then change by a factor of 3.6."""

    optimiser: Literal["adamw", "sgd"] = "adamw"
    """How the gradient moves the weights; sgd, without clipping, is the definition's own step."""

    lr: float = 1e-5
    """Learning rate, after warm-up. About 1e-5 suits all weights of a model, 1e-4 an adapter."""

    weight_decay: float = 0.0
    """Decoupled decay of the weights a step, times lr; the KL penalty already holds them back."""

    adam_betas: tuple[float, float] = (0.9, 0.999)
    """Decay of AdamW's running mean and running square of the gradient."""

    adam_epsilon: float = 1e-8
    """Added to AdamW's root mean square, in units of the gradient."""

    max_grad_norm: float | None = 1.0
    """Longest gradient, over all weights; longer ones are scaled down to it. None: never."""

    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly to lr."""

    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What the learning rate does after warm-up: stay, or fall to 0 over num_steps, along a line or half a cosine."""

    max_sampler_gap: float | None = None
    """Mean |log-prob in sampling − log-prob in training| of a token, in nats, above which a run stops;
    None: 0.001 in float32, 0.25 in bfloat16."""

    on_guard: Literal["stop", "slow"] = "stop"
    """What passing one of the five bounds below does: stop ends the run at a checkpoint, slow halves the learning rate
    from then on, and stops at the fourth time. Where a bound is None a usual one warns and does nothing else."""

    max_kl: float | None = None
    """Mean KL from the reference, in nats a completion, past which on_guard acts. The demo ends at 9 to 11 for
    completions of 20 tokens, and is healthy. None: 3 nats a token warn."""

    min_entropy: float | None = None
    """Mean entropy, in nats a token, below which on_guard acts: the model says one thing over and over. None: a tenth
    of the first step's warns."""

    max_entropy: float | None = None
    """Mean entropy, in nats a token, above which on_guard acts: the model comes apart. None: 3 nats more than in the
    first step warn."""

    max_same: float | None = None
    """Share of a step's completions that may be one and the same text before on_guard acts. None: 0.9 warns."""

    max_spike: float | None = None
    """How many times as long as the longest of the last 20 gradients one may be before on_guard acts, from the sixth
    step on. None: 10 warns."""

    num_steps: int = 100
    """Updates of the weights."""

    checkpoint_every: int = 50
    """Steps between checkpoints; one more is written at the end."""

    keep_checkpoints: int | None = 3
    """Newest checkpoints that are kept, and the best one besides where keep_best is set; older ones are removed. Should
    the newest be damaged, the one before it is taken, so 1 is thrifty rather than safe. None: all are kept."""

    preflight: bool = True
    """Look before the first step whether policy, reference and sampler agree, completions can end, rewards differ, and
    memory and disk suffice; what fails stops the run."""

    seed: int = 0
    """Decides every random number of the run."""

    def __post_init__(self) -> None:
        for name in _AT_LEAST_ONE:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: expected at least 1, got {value}")
        for name in (
            "beta",
            "caution",
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
        self._check_combinations()

    @property
    def measures_kl(self) -> bool:
        """Whether the KL from the reference is needed: to be paid for, aimed at, or kept below a bound."""
        return self.beta > 0 or self.kl_target is not None or self.max_kl is not None

    def _check_combinations(self) -> None:
        if self.baseline in ("leave_one_out", "group_normalised") and self.completions_per_prompt < 2:
            raise ConfigError(
                f"completions_per_prompt: the baseline {self.baseline} compares completions of one prompt "
                f"and needs at least 2, got {self.completions_per_prompt}; use --baseline none or batch_mean"
            )
        if self.lora_rank is not None and self.num_trainable_layers is not None:
            raise ConfigError("lora_rank and num_trainable_layers exclude each other: choose one")
        if self.lora_alpha is not None and self.lora_rank is None:
            raise ConfigError("lora_alpha: has no meaning without lora_rank")
        if self.max_same is not None and self.max_same >= 1:
            raise ConfigError(f"max_same: expected a share below 1, got {self.max_same}")
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
                f"the {self.num_steps} steps for it; lower warmup_steps, or use --lr-schedule constant"
            )
        if self.kl_target is None:
            return
        if self.beta == 0:
            raise ConfigError("kl_target: multiplies beta, and 0 stays 0; set beta to where it should start")
        batch = self.prompts_per_step * self.completions_per_prompt
        if self.kl_horizon < batch:
            raise ConfigError(
                f"kl_horizon: expected at least the {batch} completions of a step, got {self.kl_horizon}: "
                "beta would jump from step to step"
            )

    @property
    def asks_people(self) -> bool:
        """Whether people are a reward, and the run waits for them."""
        return "people" in self.reward

    @property
    def people_page(self) -> ServeOptions:
        """Where people judge, and who."""
        return ServeOptions(
            host=self.people_host,
            port=self.people_port,
            rater=self.people_rater,
            per_pair=self.people_per_pair,
        ).with_environment()

    def _check_people(self) -> None:
        for name in ("people_pairs", "refit_every"):
            if getattr(self, name) and (not self.asks_people or len(self.reward) == 1):
                raise ConfigError(
                    f"{name}: is about people and a learned reward together; expected --reward people and the folder "
                    f"of one, got {', '.join(self.reward)}"
                )
        if not self.asks_people:
            return
        if self.completions_per_prompt < 2:
            raise ConfigError(
                "completions_per_prompt: people compare completions of one prompt, so expected at least 2, got "
                f"{self.completions_per_prompt}"
            )
        if self.reward == ("people",) and self.keep_best == "reward":
            raise ConfigError(
                "keep_best: people are not asked in evaluations; name one of the judges, or leave it out"
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
            raise ConfigError(
                "keep_best: chooses among evaluations along the run; set eval_every, the steps between them"
            )
        if self.patience is not None and self.keep_best is None:
            raise ConfigError(
                "patience: waits for a new best; set keep_best, the judge that says what is best"
            )

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
            key: tuple(value) if isinstance(value, list) else value for key, value in options.items()
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
    "max_sampler_gap",
    "kl_target",
    "max_kl",
    "min_entropy",
    "max_entropy",
    "max_same",
    "max_spike",
    "reward_timeout",
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
    "num_steps",
    "checkpoint_every",
    "keep_checkpoints",
    "kl_horizon",
    "people_pairs",
)


def read_options(file: Path) -> dict[str, Any]:
    """Read options from a TOML file, whose keys are the option names with underscores.

    Raises:
        ConfigError: The file is missing or not TOML, or has an option that does not exist.
    """
    try:
        options = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot read the options: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not a TOML file: {error}") from error
    known = {field.name for field in fields(TrainConfig)}
    for name in options:
        if name not in known:
            raise ConfigError(f"{file}: unknown option {name!r}; the options are {', '.join(sorted(known))}")
    return options


def read_run_options(run: Path) -> dict[str, Any]:
    """Read the options that a run has, from the `config.json` in its folder.

    Raises:
        ConfigError: It is not the folder of a run, or has an option that does not exist.
    """
    file = run / "config.json"
    try:
        options = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{run}: not the folder of a run: cannot read config.json: {error.strerror}"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{file}: not JSON: {error}") from error
    if not isinstance(options, dict):
        raise ConfigError(f"{file}: expected the options of a run, got another kind of JSON")
    options.pop("resumed", None)
    known = {field.name for field in fields(TrainConfig)}
    if unknown := options.keys() - known:
        raise ConfigError(
            f"{file}: unknown option {min(unknown)!r}; the run was begun by another version of klimb"
        )
    return options
