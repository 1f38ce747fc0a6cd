"""The options of a run, by what they are about; a function takes the section that it uses.

Each section is a dataclass, and `TrainConfig` is all of them: wherever a section is asked for, the whole may be given.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from klimb.config.objective import ObjectiveOptions
from klimb.config.serving import ServeOptions


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What is trained, and where."""

    model: str
    """What to fine-tune: a Hugging Face folder, a .gguf file, or a hub name."""

    num_trainable_layers: int | None = None
    """Train the last so many layers only; all by default."""

    lora_rank: int | None = None
    """Train a low-rank adapter of this rank instead of the weights themselves."""

    lora_alpha: float | None = None
    """Scale of the adapter; twice its rank by default, which keeps its learning rate rank-independent."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """What the model computes in; the weights that move are float32 in either case."""

    device: str | None = None
    """Where the model runs, such as cpu or cuda:1; the first GPU if there is one, else the CPU."""

    trust_remote_code: bool = False
    """Run Python code that comes with a model. Only for models whose makers you trust."""


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """What is trained on."""

    prompts: Path
    """Prompts to train on: a .jsonl, .csv or .parquet file."""

    prompt_column: str = "prompt"
    """Column of the prompts, plain text or chat messages; the other columns go to the reward."""


@dataclass(frozen=True, kw_only=True)
class RewardOptions:
    """What completions are rewarded by."""

    reward: tuple[str, ...]
    """One or more rewards: vader, module:function, file.py:function, the http(s) address of a service, a
    sequence-classification model with one output, or people, who compare each step's completions on a page while the
    run waits. Several are added up."""

    reward_weights: tuple[float, ...] | None = None
    """Weight of each reward in the sum; 1 each by default."""

    judges: tuple[str, ...] = ()
    """Rewards that are asked about every completion and never trained on, named as the rewards are: where one of
    them turns down while the reward climbs, the policy has begun to please the reward alone."""

    uncertainty_penalty: float = 0.0
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

    @property
    def asks_people(self) -> bool:
        """Whether people are a reward, and the run waits for them."""
        return "people" in self.reward


@dataclass(frozen=True, kw_only=True)
class PeopleOptions:
    """People as a reward, who judge while the run waits."""

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
class SamplingOptions:
    """How completions are drawn."""

    prompts_per_step: int = 8
    """Prompts in a batch."""

    completions_per_prompt: int = 4
    """Completions drawn for each prompt: its group. More give a better baseline."""

    max_new_tokens: int = 64
    """Most tokens of a completion, its end token included."""

    temperature: float = 1.0
    """Of the distribution that is sampled, scored and trained; 1 is the model's own."""

    skip_special_tokens: Literal["chat", "all"] = "chat"
    """Special tokens that are left out of the texts of completions. chat: those that end, begin or pad a text and those
    that the chat template writes around turns; others, such as <think>, stay. all: every one, as TRL does."""

    micro_batch_size: int | None = None
    """Completions that go through the model at once; all by default. Changes memory, and results only by rounding."""

    seed: int = 0
    """Decides every random number of the run."""

    @property
    def completions_per_step(self) -> int:
        """N, the completions of a step: those of all its prompts."""
        return self.prompts_per_step * self.completions_per_prompt


@dataclass(frozen=True, kw_only=True)
class AlgorithmOptions(ObjectiveOptions):
    """The objective: advantages and the KL penalty."""

    kl_target: float | None = None
    """KL from the reference that beta is moved towards, in nats a completion: after each step beta grows where the KL
    was above, and shrinks where it was below. None: beta stays as it is."""

    kl_horizon: int = 500
    """Completions over which beta, where it is moved, changes by at most a fifth; over the 3,200 of a usual run it can
    then change by a factor of 3.6."""


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """How the gradient moves the weights."""

    num_steps: int = 100
    """Updates of the weights."""

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


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """When and on what the policy is evaluated, and which weights are kept."""

    eval_prompts: Path | None = None
    """Prompts to evaluate on, before and after, none of them a training prompt; by default the first 32 of those."""

    eval_completions_per_prompt: int = 4
    """Completions drawn for each evaluation prompt."""

    eval_every: int | None = None
    """Steps between evaluations on the evaluation prompts; one more follows the last step. None: only before and
    after."""

    keep_best: str | None = None
    """Judge, or `reward`, by whose mean on the evaluation prompts the best weights are kept, those of the start
    among them; the model that is saved is then the best, not the last. Needs eval_every."""

    patience: int | None = None
    """Evaluations in a row without a new best after which the run stops; None: never. Needs keep_best."""


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    """The folder of the run, and its checkpoints."""

    out: Path
    """The run's folder; it must not exist yet, or be empty."""

    checkpoint_every: int = 50
    """Steps between checkpoints; one more is written at the end."""

    keep_checkpoints: int | None = 3
    """Newest checkpoints that are kept, and the best one besides where keep_best is set; older ones are removed. Should
    the newest be damaged, the one before it is taken, so 1 is thrifty rather than safe. None: all are kept."""


@dataclass(frozen=True, kw_only=True)
class GuardOptions:
    """Bounds past which a run warns, slows down or stops."""

    on_alarm: Literal["stop", "slow"] = "stop"
    """What passing one of the five bounds below does: stop ends the run at a checkpoint, slow halves the learning rate
    from then on, and stops at the fourth time. Where a bound is None a usual one warns and does nothing else."""

    max_kl: float | None = None
    """Mean KL from the reference, in nats a completion, past which on_alarm acts. The demo ends at 9 to 11 for
    completions of 20 tokens, and is healthy. None: 3 nats a token warn."""

    min_entropy: float | None = None
    """Mean entropy, in nats a token, below which on_alarm acts: the model says one thing over and over. None: a tenth
    of the first step's warns."""

    max_entropy: float | None = None
    """Mean entropy, in nats a token, above which on_alarm acts: the model comes apart. None: 3 nats more than in the
    first step warn."""

    max_duplicate_share: float | None = None
    """Share of a step's completions that may be one and the same text before on_alarm acts. None: 0.9 warns."""

    max_grad_spike: float | None = None
    """How many times as long as the longest of the last 20 gradients one may be before on_alarm acts, from the sixth
    step on. None: 10 warns."""

    max_logprob_mismatch: float | None = None
    """Mean |log-prob in sampling − log-prob in training| of a token, in nats, above which a run stops;
    None: 0.001 in float32, 0.25 in bfloat16."""


@dataclass(frozen=True, kw_only=True)
class PreflightOptions:
    """Checks before the first step."""

    preflight: bool = True
    """Check before the first step that policy, reference and sampler agree, completions can end, rewards differ, and
    memory and disk suffice; a failed check stops the run."""


@dataclass(frozen=True, kw_only=True)
class PublishOptions:
    """Where else a run reports to, and where its model goes."""

    track: tuple[str, ...] = ()
    """Experiment trackers to report to, one or several of trackio, tensorboard, wandb and mlflow; each is an extra of
    klimb by the same name. A tracker that fails warns once and does not stop the run."""

    track_project: str = "klimb"
    """Project of trackio and W&B, or experiment of MLflow, that the run belongs to."""

    push_to_hub: str | None = None
    """Repository on the Hugging Face hub, such as me/my-model, to upload the finished model and its card to. A new one
    is private."""


SECTIONS: dict[str, type] = {
    "model": ModelOptions,
    "data": DataOptions,
    "reward": RewardOptions,
    "people": PeopleOptions,
    "sampling": SamplingOptions,
    "algorithm": AlgorithmOptions,
    "optimizer": OptimizerOptions,
    "evaluation": EvaluationOptions,
    "checkpoint": CheckpointOptions,
    "guard": GuardOptions,
    "preflight": PreflightOptions,
    "publish": PublishOptions,
}
"""Each section by its name, as tables of a TOML file are headed."""
