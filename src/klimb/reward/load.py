"""From the names in a configuration to rewards."""

from collections.abc import Sequence
from pathlib import Path

from klimb.errors import ConfigError, RewardError
from klimb.reward.function import FunctionReward, load_function
from klimb.reward.reward import Reward, WeightedSum

BUILT_IN = {"vader": "klimb.reward.vader:vader"}
"""Rewards that come with klimb, by name."""


def load_rewards(
    specs: Sequence[str],
    weights: Sequence[float] | None = None,
    *,
    judges: Sequence[str] = (),
    caution: float = 0.0,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> WeightedSum:
    """Load rewards and add them up.

    Args:
        specs: Each the name of a built-in reward, `module:function`, `file.py:function`, or a
            sequence-classification model: a folder or a name on the Hugging Face hub.
        weights: One number a reward; 1 for each where None.
        judges: Rewards that are asked too and count for nothing, named as the others are.
        caution: How many times an ensemble's spread is taken off a reward model's score; judges keep theirs.
        device: Where a reward model goes; the first GPU if there is one, else the CPU, where None.
        trust_remote_code: Whether Python code that comes with a reward model may run.

    Raises:
        ConfigError: No reward, a reward twice, or not as many weights as rewards.
        RewardError: A reward cannot be found or loaded.
        ModelNotFoundError: A reward model cannot be loaded.
    """
    if not specs:
        raise ConfigError("reward: expected at least one reward")
    names = [*specs, *judges]
    if len(set(names)) != len(names):
        raise ConfigError(f"reward: each reward or judge may be named once, got {', '.join(names)}")
    if weights is not None and len(weights) != len(specs):
        raise ConfigError(
            f"reward_weights: expected {len(specs)} weights, one for each reward, got {len(weights)}"
        )
    loaded = [_load(spec, caution, device, trust_remote_code) for spec in specs]
    return WeightedSum(loaded, weights, [_load(spec, 0.0, device, trust_remote_code) for spec in judges])


def _load(spec: str, caution: float, device: str | None, trust_remote_code: bool) -> Reward:
    if spec in BUILT_IN:
        return FunctionReward(spec, load_function(BUILT_IN[spec]))
    if ":" in spec:
        return FunctionReward(spec, load_function(spec))
    if (Path(spec) / "config.json").is_file() or (
        spec.count("/") == 1 and not spec.startswith((".", "/", "~"))
    ):
        from klimb.reward.classifier import ClassifierReward

        return ClassifierReward(spec, caution=caution, device=device, trust_remote_code=trust_remote_code)
    raise RewardError(
        f"reward {spec}: unknown; expected a built-in ({', '.join(BUILT_IN)}), module:function, "
        "file.py:function, or a sequence-classification model (folder or hub name)"
    )
