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
    """Number of last layers to train. Default: all weights."""

    lora_rank: int | None = None
    """Train a LoRA adapter of this rank instead of the model's own weights."""

    lora_alpha: float | None = None
    """LoRA alpha. Default: 2 × rank, which makes the best learning rate independent of the rank."""

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
    """Prompts to train on: a .jsonl, .csv or .parquet file, or a folder."""

    prompt_column: str = "prompt"
    """Column of the prompts, plain text or chat messages. The reward receives the other columns."""


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
    """Held-out rewards, given in the same form as --reward: logged at every step, never trained on. If a judge falls
    while the reward rises, the policy has begun to exploit the reward."""

    uncertainty_penalty: float = 0.0
    """How strongly to penalise ensemble disagreement: the reward is score − this × standard deviation of the members.
    0: no penalty."""

    accept_unproven_reward: bool = False
    """Train even if the learned reward does not beat chance on held-out judgements, as its reward.json records."""

    max_failed: float = 0.1
    """Stop the run if the reward fails for more than this share of the completions of a step or an evaluation. Failed
    completions are left out of the gradient. Many failures mean that the reward is broken, or fails for one kind of
    completion, which the policy would then not learn to avoid."""

    reward_timeout: float | None = None
    """Time limit in seconds for a reward function's batch or a service's request. None: no limit for a function, 60 s
    for a service. With a limit, reward functions run in a worker thread."""

    @property
    def asks_people(self) -> bool:
        """Whether people are a reward, and the run waits for them."""
        return "people" in self.reward


@dataclass(frozen=True, kw_only=True)
class PeopleOptions:
    """People as the reward: they judge while the run waits."""

    people_host: str = "127.0.0.1"
    """Address that serves the page of --reward people. With any address that is not a loopback address, everyone who
    has the printed link can open the page."""

    people_port: int = 8321
    """Port of that page."""

    people_rater: str | None = None
    """Rater's name, if only one person judges, on this machine. Default: the page asks for a name."""

    people_per_pair: int = 1
    """Number of different people who judge each pair."""

    people_pairs: int | None = None
    """Pairs per step that people are asked about, chosen where the learned reward's ensemble disagrees most; other
    completions get only the learned reward. Needs --reward people FOLDER. None: each completion is compared with its
    neighbours."""

    refit_every: int = 0
    """Refit the accompanying learned reward every this many steps on this run's judgements. Evaluations use the reward
    as it was at the start. Needs --reward people FOLDER. 0: never."""

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
    """Completions per prompt, the group size G. More completions give a better baseline."""

    max_new_tokens: int = 64
    """Maximum number of tokens of a completion, its end token included."""

    temperature: float = 1.0
    """Temperature of the distribution that is sampled, scored and trained. 1: the model's own distribution."""

    skip_special_tokens: Literal["chat", "all"] = "chat"
    """Special tokens that are removed from the texts of completions. chat: end, begin and padding tokens and chat-turn
    markers are removed; others, such as <think>, stay. all: every special token is removed, as in TRL."""

    micro_batch_size: int | None = None
    """Completions per forward pass. Default: all of a step. Lower values use less memory; results change only by
    rounding."""

    seed: int = 0
    """Random seed."""

    @property
    def completions_per_step(self) -> int:
        """N, the completions of a step: those of all its prompts."""
        return self.prompts_per_step * self.completions_per_prompt


@dataclass(frozen=True, kw_only=True)
class AlgorithmOptions(ObjectiveOptions):
    """The objective: advantages and the KL penalty."""

    kl_target: float | None = None
    """Target of the KL from the reference, in nats per completion. After each step beta is raised if the KL was above
    the target and lowered if it was below. None: beta is fixed."""

    kl_horizon: int = 500
    """How slowly beta adapts: at most 20 % per this many completions. In a default run of 3,200 completions beta can
    change by a factor of 3.6."""


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """How the gradient moves the weights."""

    num_steps: int = 100
    """Number of training steps; each makes num_epochs × num_minibatches updates of the weights."""

    optimiser: Literal["adamw", "sgd"] = "adamw"
    """adamw, or sgd: plain gradient ascent, which without clipping is exactly the definition's step."""

    lr: float = 1e-5
    """Learning rate after warm-up. About 1e-5 suits all weights of a model, 1e-4 suits LoRA."""

    weight_decay: float = 0.0
    """Decoupled weight decay per step, multiplied by lr. Usually unnecessary: the KL penalty already limits how far the
    policy moves."""

    adam_betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's running mean and mean square of the gradient."""

    adam_epsilon: float = 1e-8
    """Epsilon added to AdamW's root mean square, in units of the gradient."""

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
    """Evaluate every this many steps, and after the last. None: only before and after training."""

    keep_best: str | None = None
    """Save the weights with the highest mean of this judge (or `reward`) on the evaluation prompts; the starting
    weights are candidates too. Needs eval_every. Default: the last weights are saved."""

    patience: int | None = None
    """Stop the run after this many evaluations in a row without improvement. Needs keep_best. None: never."""


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    """The run's folder and its checkpoints."""

    out: Path
    """The run's folder. It must not exist, or must be empty."""

    checkpoint_every: int = 50
    """Write a checkpoint every this many steps, and at the end."""

    keep_checkpoints: int | None = 3
    """Number of newest checkpoints to keep, in addition to the best one with keep_best; older ones are removed. If the
    newest is damaged, the run resumes from the one before it, so 1 saves disk space but is less safe. None: keep
    all."""


@dataclass(frozen=True, kw_only=True)
class GuardOptions:
    """Bounds beyond which a run warns, slows down or stops."""

    on_alarm: Literal["stop", "slow"] = "stop"
    """What to do when a guard bound that you set is passed (max_kl, min_entropy, max_entropy, max_duplicate_share or
    max_grad_spike). stop: the run saves a checkpoint and ends. slow: the learning rate is halved, up to three times;
    the fourth alarm stops the run. Bounds left at None only warn."""

    max_kl: float | None = None
    """Bound on the mean KL from the reference, in nats per completion. None: a warning at 3 nats per token. For
    comparison: the demo ends at about 14 nats for completions of 20 tokens, which is healthy."""

    min_entropy: float | None = None
    """Lower bound on the mean entropy, in nats per token; below it the model repeats itself. None: a warning at a tenth
    of the first step's entropy."""

    max_entropy: float | None = None
    """Upper bound on the mean entropy, in nats per token; above it the model produces noise. None: a warning at 3 nats
    above the first step's."""

    max_duplicate_share: float | None = None
    """Bound on the share of a step's completions that have the same text. None: a warning at 0.9."""

    max_grad_spike: float | None = None
    """Bound on the gradient norm, as a multiple of the largest among the last 20 steps, from the sixth step on. None: a
    warning at 10."""

    max_logprob_mismatch: float | None = None
    """Bound on the mean absolute difference per token between log-probs recorded in sampling and recomputed in
    training, in nats. Above it the run stops before the update. None: 0.001 in float32, 0.25 in bfloat16."""


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
    """Parts of whole prompts into which a step is cut, to be shared by ranks. S slices give the same bits on S, S/2,
    S/4, … and 1 ranks, also if a run is resumed on a different number of ranks. Default: the number of ranks at the
    start."""

    rank_timeout: float = 1800.0
    """Seconds that a rank waits for the others before the run stops with an error that names the late rank. A step's
    rewards must not differ by more between ranks."""


@dataclass(frozen=True, kw_only=True)
class PublishOptions:
    """Experiment trackers, and where the finished model is uploaded."""

    track: tuple[str, ...] = ()
    """Experiment trackers, one or more of trackio, tensorboard, wandb and mlflow; each is an extra of klimb with the
    same name. A tracker that fails causes one warning and does not stop the run."""

    track_project: str = "klimb"
    """Project of the run in trackio and W&B; experiment in MLflow."""

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
