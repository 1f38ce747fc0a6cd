"""Loads rewards from their names in a configuration."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from klimb.config.address import TOKEN_VARIABLE, is_address, refuse_secrets
from klimb.errors import ConfigError, RewardError
from klimb.reward.event_loop import EventLoop
from klimb.reward.function import FunctionReward, load_function
from klimb.reward.reward import Reward, WeightedSum

PEOPLE = "people"
"""What people are called as a reward, who compare a step's completions on a page."""

BUILT_IN = {"vader": "klimb.reward.vader:vader"}
"""Rewards that come with klimb, by name."""

OBJECT = "python:"
"""What the name of a reward begins with that was given as a Python function, and not by its name."""


@dataclass(frozen=True)
class NamedFunction:
    """A function that was given as an object.

    Attributes:
        name: What messages and files call it; it begins with `python:`.
        function: The function.
    """

    name: str
    function: Callable[..., Any]


Functions = Mapping[str, Callable[..., Any]]
"""Rewards and judges that were given as objects, by their names in a configuration."""

NO_FUNCTIONS: Functions = {}


def named(name: str, functions: Functions) -> str | NamedFunction:
    """Return a reward's name, with its function where it was given as one."""
    return NamedFunction(name, functions[name]) if name in functions else name


def load_rewards(
    specs: Sequence[str | NamedFunction | Reward],
    weights: Sequence[float] | None = None,
    *,
    judges: Sequence[str | NamedFunction] = (),
    uncertainty_penalty: float = 0.0,
    device: str | None = None,
    trust_remote_code: bool = False,
    timeout: float | None = None,
) -> WeightedSum:
    """Load rewards and add them up.

    Args:
        specs: Each a reward as it is, a function, or the name of a built-in one, `module:function`,
            `file.py:function`, the http(s) address of a service, or a sequence-classification model: a folder or a
            name on the Hugging Face hub.
        weights: One number a reward; 1 for each where None.
        judges: Rewards that are asked too and count for nothing, named as the others are.
        uncertainty_penalty: How many times an ensemble's spread is taken off a reward model's score; judges keep
            theirs.
        device: Where a reward model goes; the first GPU if there is one, else the CPU, where None.
        trust_remote_code: Whether Python code that comes with a reward model may run.
        timeout: Seconds that a function may take for a batch, or a service for a request; where None a function may
            take as long as it likes, and a service as long as `klimb.reward.http.Patience` says.

    Raises:
        ConfigError: No reward, a reward twice, not as many weights as rewards, or an address with a secret in it.
        RewardError: A reward cannot be found or loaded.
        ModelNotFoundError: A reward model cannot be loaded.
    """
    if not specs:
        raise ConfigError("reward: expected at least one reward")
    _require_names([*specs, *judges])
    if weights is not None and len(weights) != len(specs):
        raise ConfigError(
            f"reward_weights: expected {len(specs)} weights, one for each reward, got {len(weights)}"
        )

    loop = EventLoop()  # one for all, so that asynchronous rewards wait together

    def load(spec: str | NamedFunction | Reward, uncertainty_penalty: float) -> Reward:
        if isinstance(spec, NamedFunction):
            return FunctionReward(spec.name, spec.function, timeout, loop)
        if not isinstance(spec, str):
            return spec
        if is_address(spec):
            return _service(spec, timeout)
        if function := _function(spec):
            return FunctionReward(spec, function, None if spec in BUILT_IN else timeout, loop)
        return _model(spec, uncertainty_penalty, device, trust_remote_code)

    return WeightedSum(
        [load(spec, uncertainty_penalty) for spec in specs], weights, [load(spec, 0.0) for spec in judges]
    )


def require_proven(specs: Sequence[str]) -> None:
    """Raise if a reward that klimb learned did not beat chance; models of others have no such record.

    Raises:
        RewardError: The message says how it fared, and what to do.
    """
    for spec in specs:
        try:
            found = json.loads((Path(spec).expanduser() / "reward.json").read_text(encoding="utf-8"))
            is_proven, said = found["held_out"]["beats_chance"], found["verdict"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if is_proven is False:
            raise RewardError(f"reward {spec}: {said} --accept-unproven-reward trains on it anyway")


def _require_names(specs: Sequence[str | NamedFunction | Reward]) -> None:
    """Raise unless rewards and judges are named once each, by names that may be shown."""
    names = [spec if isinstance(spec, str) else spec.name for spec in specs]
    refuse_secrets(names)
    if len(set(names)) != len(names):
        raise ConfigError(f"reward: each reward or judge may be named once, got {', '.join(names)}")
    if PEOPLE in specs:
        raise ConfigError(f"{PEOPLE}: are asked as a reward of klimb train, and afterwards by klimb compare")


def _function(spec: str) -> Callable[..., Any] | None:
    """Find the function that a name means; None where it means something else."""
    if spec.startswith(OBJECT):
        raise RewardError(
            f"reward {spec}: was given as a Python function, which no file holds; resume in Python with "
            "klimb.Run(folder).resume(reward=the_function)"
        )
    return load_function(BUILT_IN.get(spec, spec)) if spec in BUILT_IN or ":" in spec else None


def _service(url: str, timeout: float | None) -> Reward:
    from klimb.reward.http import HttpReward, Patience

    patience = Patience() if timeout is None else Patience(timeout=timeout)
    return HttpReward(url, token=os.environ.get(TOKEN_VARIABLE) or None, patience=patience)


def _model(spec: str, uncertainty_penalty: float, device: str | None, trust_remote_code: bool) -> Reward:
    if Path(spec).expanduser().is_dir() or (spec.count("/") == 1 and not spec.startswith((".", "/", "~"))):
        from klimb.reward.classifier import ClassifierReward

        return ClassifierReward(
            spec, uncertainty_penalty=uncertainty_penalty, device=device, trust_remote_code=trust_remote_code
        )
    raise RewardError(
        f"reward {spec}: unknown; expected a built-in ({', '.join(BUILT_IN)}), module:function, "
        "file.py:function, an http(s) address, or a sequence-classification model (folder or hub name)"
    )
