"""The options of a run, by what they are about; a function takes the section that it uses.

Each section is a dataclass, and `TrainConfig` is all of them: wherever a section is asked for, the whole may be given.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from klimb.config.decoding import DecodingOptions
from klimb.config.objective import ObjectiveOptions
from klimb.config.serving import ServeOptions
from klimb.config.value import ValueOptions


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What is trained, and on which device."""

    model: str
    """Model to fine-tune: a Hugging Face folder, a .gguf file, or a name on the hub."""

    num_trainable_layers: int | None = None
    """Train only the last layers, this many. Default: all."""

    lora_rank: int | None = None
    """Train a LoRA adapter of this rank instead of the model's own weights."""

    lora_alpha: float | None = None
    """Scale of the adapter. Default: twice its rank, which makes the best learning rate independent of the rank."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Floating-point type of the computation. The trained weights are float32 in either case."""

    device: str | None = None
    """Where the model runs, such as cpu or cuda:1. Default: the first GPU if there is one, else the CPU."""

    trust_remote_code: bool = False
    """Run Python code that comes with a model. Only for models whose makers you trust."""


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The prompts."""

    prompts: Path
    """Prompts to train on: a .jsonl, .csv or .parquet file."""

    prompt_column: str = "prompt"
    """Column of the prompts, plain text or chat messages. The other columns go to the reward."""


@dataclass(frozen=True, kw_only=True)
class RewardOptions:
    """How completions are rewarded."""

    reward: tuple[str, ...]
    """One or more rewards, which are added: vader, module:function, file.py:function, the http(s) address of a service,
    a sequence-classification model with one output, or people, who compare each step's completions on a page while the
    run waits."""

    reward_weights: tuple[float, ...] | None = None
    """Weight of each reward in the sum. Default: 1 each."""

    judges: tuple[str, ...] = ()
    """Held-out rewards, named as rewards are: logged at every step, never trained on. If a judge falls while the reward
    rises, the policy has begun to exploit the reward."""

    uncertainty_penalty: float = 0.0
    """Multiple of an ensemble's spread that is subtracted from a reward model's score, so that the policy gains nothing
    where the members disagree. 0 uses the model's own score."""

    accept_unproven_reward: bool = False
    """Train on a learned reward although it does not beat chance on held-out judgements, as its reward.json records."""

    max_failed: float = 0.1
    """Largest share of the completions of a step or an evaluation whose reward may fail; above it the run stops. Failed
    completions are left out of the gradient. Many failures mean that the reward is broken, or fails for one kind of
    completion, which the policy would then not learn to avoid."""

    reward_timeout: float | None = None
    """Time limit in seconds for a reward function's batch or a service's request. None: no limit for a function, 60 s
    for a service. With a limit, a function runs in a thread other than the main one."""

    @property
    def asks_people(self) -> bool:
        """Whether people are a reward, and the run waits for them."""
        return "people" in self.reward


@dataclass(frozen=True, kw_only=True)
class PeopleOptions:
    """People as the reward: they judge while the run waits."""

    people_host: str = "127.0.0.1"
    """Address that serves the page of --reward people. With any but a loopback address, whoever has the printed link
    can open it."""

    people_port: int = 8321
    """Port of that page."""

    people_rater: str | None = None
    """Name of the one person who judges on this machine. Default: the page asks for a name."""

    people_per_pair: int = 1
    """Judgements wanted of each pair, each from another person."""

    people_pairs: int | None = None
    """Number of pairs of each step that people are asked about: those on which the ensemble of the learned reward
    beside people disagrees most. Other completions get the learned reward alone. None: each completion is compared with
    its neighbours."""

    refit_every: int = 0
    """Steps between refits of the learned reward beside people, from its head and what people said in this run until
    then. Evaluations use the reward as it was at the start. 0: never."""

    @property
    def people_page(self) -> ServeOptions:
        """Where people judge, and who."""
        return ServeOptions(
            host=self.people_host,
            port=self.people_port,
            rater=self.people_rater,
            per_pair=self.people_per_pair,
        ).with_environment()


@dataclass(frozen=True, kw_only=True)
class SamplingOptions(DecodingOptions):
    """How completions are drawn."""

    prompts_per_step: int = 8
    """Prompts per step. A step has prompts_per_step × completions_per_prompt completions."""

    completions_per_prompt: int = 4
    """Completions per prompt, the group size G. More of them give a better baseline."""

    max_new_tokens: int = 64
    """Maximum number of tokens of a completion, its end token included."""

    temperature: float = 1.0
    """Temperature of the distribution that is sampled, scored and trained. 1 is the model's own."""

    skip_special_tokens: Literal["chat", "all"] = "chat"
    """Special tokens that are left out of the texts of completions. chat: those that end, begin or pad a text and those
    that the chat template writes around turns; others, such as <think>, stay. all: every one, as in TRL."""

    micro_batch_size: int | None = None
    """Completions that go through the model at once. Default: all. Fewer take less memory; results change only by
    rounding."""

    seed: int = 0
    """Determines every random number of the run."""

    @property
    def completions_per_step(self) -> int:
        """N, the completions of a step: those of all its prompts."""
        return self.prompts_per_step * self.completions_per_prompt


@dataclass(frozen=True, kw_only=True)
class AlgorithmOptions(ObjectiveOptions):
    """The objective: advantages and the KL penalty."""

    kl_target: float | None = None
    """Target of the KL from the reference, in nats per completion. After each step beta grows if the KL was above it
    and shrinks if it was below. None: beta is fixed."""

    kl_horizon: int = 500
    """Completions over which an adaptive beta changes by at most a fifth. Over the 3,200 completions of a default run
    it can change by a factor of 3.6."""


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """How the gradient moves the weights."""

    num_steps: int = 100
    """Number of updates of the weights."""

    optimiser: Literal["adamw", "sgd"] = "adamw"
    """adamw, or sgd: plain gradient ascent, which without clipping is exactly the definition's step."""

    lr: float = 1e-5
    """Learning rate after warm-up. About 1e-5 suits all weights of a model, 1e-4 an adapter."""

    weight_decay: float = 0.0
    """Decoupled weight decay per step, multiplied by lr. The KL penalty already limits the weights."""

    adam_betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's running mean and mean square of the gradient."""

    adam_epsilon: float = 1e-8
    """Added to AdamW's root mean square, in units of the gradient."""

    max_grad_norm: float | None = 1.0
    """Maximum norm of the gradient over all trained weights; a longer gradient is scaled down to it. None: no
    clipping."""

    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly to lr."""

    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after warm-up: constant, or falling to 0 over num_steps, linearly or as half a cosine."""


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """When and on which prompts the policy is evaluated, and which weights are kept."""

    eval_prompts: Path | None = None
    """Held-out prompts to evaluate on before and after training; none may be a training prompt. Default: the first 32
    training prompts."""

    eval_completions_per_prompt: int = 4
    """Completions per evaluation prompt."""

    eval_every: int | None = None
    """Steps between evaluations; one more follows the last step. None: only before and after."""

    keep_best: str | None = None
    """Judge, or `reward`, whose mean on the evaluation prompts selects the weights that are saved, those of the start
    included. Default: the last weights are saved. Needs eval_every."""

    patience: int | None = None
    """Number of evaluations in a row without improvement after which the run stops. None: never. Needs keep_best."""


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    """The run's folder and its checkpoints."""

    out: Path
    """The run's folder. It must not exist, or must be empty."""

    checkpoint_every: int = 50
    """Steps between checkpoints; one more is written at the end."""

    keep_checkpoints: int | None = 3
    """Number of newest checkpoints that are kept, in addition to the best with keep_best; older ones are removed. If
    the newest is damaged, the run resumes from the one before it, so 1 saves disk and is less safe. None: all are
    kept."""


@dataclass(frozen=True, kw_only=True)
class GuardOptions:
    """Bounds beyond which a run warns, slows down or stops."""

    on_alarm: Literal["stop", "slow"] = "stop"
    """What happens if one of the five bounds below is passed. stop: the run ends at a checkpoint. slow: the learning
    rate is halved, up to three times; the fourth alarm stops the run. A bound of None stands for a default that only
    warns."""

    max_kl: float | None = None
    """Bound on the mean KL from the reference, in nats per completion. None: a warning at 3 nats per token. For
    comparison: the demo ends at 9 to 11 nats for completions of 20 tokens, which is healthy."""

    min_entropy: float | None = None
    """Lower bound on the mean entropy, in nats per token; below it the model repeats itself. None: a warning at a tenth
    of the first step's entropy."""

    max_entropy: float | None = None
    """Upper bound on the mean entropy, in nats per token; above it the model produces noise. None: a warning at 3 nats
    above the first step's."""

    max_duplicate_share: float | None = None
    """Bound on the share of a step's completions that are the same text. None: a warning at 0.9."""

    max_grad_spike: float | None = None
    """Bound on the gradient norm, as a multiple of the largest among the last 20 steps, from the sixth step on. None: a
    warning at 10."""

    max_logprob_mismatch: float | None = None
    """Bound on the mean |log-prob in sampling − log-prob in training| of a token, in nats; above it the run stops
    before it moves the weights. None: 0.001 in float32, 0.25 in bfloat16."""


@dataclass(frozen=True, kw_only=True)
class PreflightOptions:
    """Checks before the first step."""

    preflight: bool = True
    """Check before the first step that policy, reference and sampler agree, that completions can end, that rewards
    differ, and that memory and disk suffice. A failed check stops the run."""


@dataclass(frozen=True, kw_only=True)
class RankOptions:
    """How a run is shared by several processes, its ranks; docs/scale.md."""

    num_slices: int | None = None
    """Parts of whole prompts that a step is cut into and that ranks share. S slices give the same bits on S, S/2, S/4,
    … and 1 ranks, also if a run is resumed on another number of them. Default: the number of ranks at the start."""

    rank_timeout: float = 1800.0
    """Seconds that a rank waits for the others before the run stops with an error that names the late rank. A step's
    rewards must not differ by more between ranks."""


@dataclass(frozen=True, kw_only=True)
class PublishOptions:
    """Experiment trackers, and where the finished model is uploaded."""

    track: tuple[str, ...] = ()
    """Experiment trackers, one or several of trackio, tensorboard, wandb and mlflow; each is an extra of klimb with the
    same name. A tracker that fails causes one warning and does not stop the run."""

    track_project: str = "klimb"
    """Project of the run in trackio and W&B, or its experiment in MLflow."""

    push_to_hub: str | None = None
    """Repository on the Hugging Face hub, such as me/my-model, to which the finished model and its card are uploaded. A
    new repository is private."""


SECTIONS: dict[str, type] = {
    "model": ModelOptions,
    "data": DataOptions,
    "reward": RewardOptions,
    "people": PeopleOptions,
    "sampling": SamplingOptions,
    "algorithm": AlgorithmOptions,
    "value": ValueOptions,
    "optimizer": OptimizerOptions,
    "evaluation": EvaluationOptions,
    "checkpoint": CheckpointOptions,
    "guard": GuardOptions,
    "preflight": PreflightOptions,
    "ranks": RankOptions,
    "publish": PublishOptions,
}
"""Each section by its name, as tables of a TOML file are headed."""
