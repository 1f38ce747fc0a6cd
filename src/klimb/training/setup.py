"""Reads and loads everything that a run needs before its first step."""

import itertools

from klimb.config.sections import EvaluationOptions
from klimb.config.train import TrainConfig
from klimb.config.value import HEAD, SELF
from klimb.data.prompts import PromptFile, PromptRow, indices_of_step, read_prompts, require_held_out
from klimb.errors import ConfigError
from klimb.model.clock import current_moment, reads_clock
from klimb.model.load import WRITER, load
from klimb.model.trainable import Lora, train_parts, trainable_copy
from klimb.policy.distribution import SamplingDistribution
from klimb.policy.engine.decoding import TextDecoder
from klimb.policy.engine.stopping import StopRules
from klimb.policy.lengths import check_lengths
from klimb.policy.policy import Policy
from klimb.policy.value_function import HeadOnPolicy, ValueFunction, ValueModel
from klimb.reward.load import NO_FUNCTIONS, PEOPLE, Functions, load_rewards, named, require_proven
from klimb.reward.reward import WeightedSum
from klimb.training.evaluate.estimates import short_name
from klimb.training.observer import Observer
from klimb.training.people import ask_people, join_people, store_of
from klimb.training.preflight.preflight import PreflightInputs, require_room
from klimb.training.preflight.resources import device_of
from klimb.training.storage.environment import describe_slowness, require_paths
from klimb.training.trackers.registry import require_trackers

_MOST_TRAINING_PROMPTS_EVALUATED = 32  # where no held-out prompts are given


def prepare(
    config: TrainConfig, observer: Observer, functions: Functions = NO_FUNCTIONS
) -> tuple[PreflightInputs, PromptFile, list[PromptRow]]:
    """Read and load all that a run is made of.

    Everything that can be wrong with the options and their files is found before the model is loaded.

    Args:
        config: The options.
        observer: Receives messages about what takes long.
        functions: Rewards and judges that were given as objects, by the names that `config` has for them.

    Returns:
        What preflight looks at, the training prompts, and the evaluation prompts.

    Raises:
        KlimbError: Something is wrong with an option, a file, a reward or the model.
    """
    require_trackers(config.track)
    require_paths(device_of(config.device), config.precision)
    if not config.accept_unproven_reward:
        require_proven(config.reward)
    rows = PromptFile(config.prompts, config.prompt_column, config.system_prompt)
    eval_rows = _rows_to_evaluate(config, rows)
    indices_of_step(0, len(rows), config.prompts_per_step, config.seed)
    store, say = store_of(config), observer.message
    reward = load_rewards(
        [
            ask_people(config, store, say) if name == PEOPLE else named(name, functions)
            for name in config.reward
        ],
        config.reward_weights,
        judges=[named(name, functions) for name in config.judges],
        uncertainty_penalty=config.uncertainty_penalty,
        device=config.device,
        trust_remote_code=config.trust_remote_code,
        timeout=config.reward_timeout,
    )
    join_people(config, reward, say, seed=config.seed)
    base = require_room(config)
    observer.model_loading(config.model)
    policy = load_policy(config)
    longest = check_lengths(
        policy, itertools.chain(rows, eval_rows), config.max_new_tokens, reward.check_prompt
    )
    value = load_value_function(config, policy, longest)
    inputs = PreflightInputs(config, policy, reward, rows, len(eval_rows), longest, base, value)
    return inputs, rows, eval_rows


def load_policy(config: TrainConfig) -> Policy:
    """Load the policy that a configuration asks for."""
    policy = Policy.load(
        config.model,
        distribution=SamplingDistribution.of(config, config.temperature),
        num_trainable_layers=config.num_trainable_layers,
        lora=_lora(config),
        lora_seed=config.seed,
        micro_batch_size=config.micro_batch_size,
        precision=config.precision,
        has_reference=config.measures_kl,
        device=config.device,
        trust_remote_code=config.trust_remote_code,
    )
    policy.text_decoder = TextDecoder(policy.tokenizer, config.skip_special_tokens, policy.end_ids)
    policy.stop_rules = StopRules(config.min_new_tokens, config.stop)
    return policy


def load_value_function(config: TrainConfig, policy: Policy, longest_prompt: int) -> ValueFunction | None:
    """Make the value function that a configuration asks for; None where its objective has none.

    Args:
        config: The options.
        policy: The policy, at the weights that the run begins with.
        longest_prompt: Tokens of the longest prompt.

    Raises:
        ModelNotFoundError: Nothing loadable where `value_model` says.
        ConfigError: That model has another vocabulary than the policy, or too short a context.
    """
    if config.algorithm.baseline != "value":
        return None
    if config.value_source == HEAD:
        return HeadOnPolicy(policy)
    if config.value_source == SELF:
        model = trainable_copy(policy.model)
    else:
        loaded = load(
            WRITER, config.value_source, device=config.device, trust_remote_code=config.trust_remote_code
        )
        if loaded.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
            raise ConfigError(
                f"value_model: {config.value_source} has another vocabulary than the policy, whose tokens it is to "
                "read; choose a model with the policy's tokenizer, or --value-model self"
            )
        context = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
        if context is not None and longest_prompt + config.max_new_tokens > context:
            raise ConfigError(
                f"value_model: {config.value_source} reads {context} tokens at most, and prompts of {longest_prompt} "
                f"with completions of {config.max_new_tokens} are longer; lower --max-new-tokens, or choose "
                "another model"
            )
        model = train_parts(loaded.model, config.num_trainable_layers, _lora(config), config.seed)
    return ValueModel(
        model,
        precision=config.precision,
        micro_batch_size=config.micro_batch_size,
        has_policys_trunk=config.value_source == SELF,
    )


def _lora(config: TrainConfig) -> Lora | None:
    if config.lora_rank is None:
        return None
    return Lora(config.lora_rank, config.lora_alpha or 2.0 * config.lora_rank)


def describe(config: TrainConfig, policy: Policy, rows: PromptFile, reward: WeightedSum) -> dict[str, str]:
    """Say in a line each what model, batch and device are, and what a person should know of them."""
    num_moved = sum(p.numel() for p in policy.trainable().values())
    num_parameters = sum(p.numel() for p in policy.model.parameters())
    batch = config.completions_per_step
    facts = {
        "model": f"{config.model}, {num_parameters:,} parameters, {num_moved:,} of them trained",
        "batch": f"{config.prompts_per_step} of {len(rows)} prompts × {config.completions_per_prompt} "
        f"completions = {batch} a step, up to {config.max_new_tokens} tokens each",
        "device": f"{policy.model.device}, {config.precision}",
    }
    if policy.notes:
        facts["loading"] = "; ".join(policy.notes)
    if config.algorithm.baseline == "value":
        facts["value function"] = _value_words(config)
    if reward.notes:
        facts["rewards"] = "; ".join(reward.notes)
    if not config.measures_kl:
        facts["KL"] = "not measured, as beta is 0: no reference is kept, and no pass is made through one"
    slowness = describe_slowness(policy.model.device, config.precision)
    if slowness:
        facts["slow"] = slowness
    if not policy.way.shares_prompts:
        facts["prompts"] = f"run again for every completion, which is slow: {policy.way.reason}"
    if reads_clock(policy.tokenizer):
        facts["clock"] = (
            f"the chat template writes the time: {current_moment()} in this run, also when resumed"
        )
    facts |= _prompt_facts(config, rows)
    if config.eval_every is not None:
        facts["judging"] = _evaluation_words(config)
    return facts


def _prompt_facts(config: TrainConfig, rows: PromptFile) -> dict[str, str]:
    """Say what the file of prompts has beside them, and how they stand in it."""
    facts: dict[str, str] = {}
    if rows.unread:
        names = ", ".join(f"{name!r} ({count:,} rows)" for name, count in sorted(rows.unread.items()))
        facts["columns"] = (
            f"the policy reads {config.prompt_column!r} only; {names} go to the rewards and are not in the prompt"
        )
    if rows.num_continued:
        facts["prefill"] = (
            f"{rows.num_continued:,} of {len(rows):,} prompts end with a message of the assistant's, which the policy "
            "continues"
        )
    if rows.repeats is not None:
        facts["repeats"] = str(rows.repeats)
    return facts


def _rows_to_evaluate(config: TrainConfig, rows: PromptFile) -> list[PromptRow]:
    if config.eval_prompts is None:
        return rows[:_MOST_TRAINING_PROMPTS_EVALUATED]
    held_out = read_prompts(config.eval_prompts, config.prompt_column, config.system_prompt)
    require_held_out(held_out, rows)
    return held_out


def _value_words(config: TrainConfig) -> str:
    source = {HEAD: "a head on the policy's last hidden state", SELF: "a copy of the policy's model"}
    words = source.get(config.value_source, config.value_source)
    if config.value_warmup_steps:
        words += f"; in steps 1 to {config.value_warmup_steps} the policy does not move"
    return words


def _evaluation_words(options: EvaluationOptions) -> str:
    words = f"every {options.eval_every} steps"
    if options.keep_best is not None:
        words += f"; the weights are kept that {short_name(options.keep_best)} finds best"
    if options.patience is not None:
        words += f"; {options.patience} evaluations in a row with nothing better end the run"
    return words
