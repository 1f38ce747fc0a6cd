"""The options of a value function, which objectives with the baseline `value` subtract from returns."""

import math
from dataclasses import dataclass

from klimb.errors import ConfigError

HEAD, SELF = "head", "self"
VALUE_LR = {HEAD: 1e-2, SELF: 1e-5}
"""Default learning rates: of a head alone, and of a model of its own."""


@dataclass(frozen=True, kw_only=True)
class ValueOptions:
    """The value function of objectives that subtract one from returns, such as ppo."""

    value_model: str | None = None
    """What predicts values. head: a linear layer on the policy's last hidden state, whose gradient stops there. self: a
    copy of the policy's model with such a layer, all trained. Or a causal language model with the policy's tokenizer: a
    Hugging Face folder, a .gguf file, or a name on the hub. Default: head."""

    value_lr: float | None = None
    """Learning rate of the value function, constant over the run: of the head, by default 0.01, or of its own model, by
    default 1e-5, whose head then has 0.01. About 1e-4 suits an adapter."""

    value_warmup_steps: int | None = None
    """First steps, in which the value function is trained and the policy does not move. Default: 0."""

    @property
    def value_source(self) -> str:
        """What predicts values: `head`, `self`, or a model's name."""
        return self.value_model or HEAD

    @property
    def present_value_lr(self) -> float:
        """The learning rate of the value function."""
        usual = VALUE_LR[HEAD if self.value_source == HEAD else SELF]
        return usual if self.value_lr is None else self.value_lr

    @property
    def present_head_lr(self) -> float:
        """The learning rate of its head."""
        return self.present_value_lr if self.value_source == HEAD else VALUE_LR[HEAD]

    def check_value(self, *, has_value: bool, objective: str, baseline: str, num_steps: int) -> None:
        """Raise unless the options have a meaning.

        Args:
            has_value: Whether the objective has a value function.
            objective: Its name, for messages.
            baseline: Its baseline, for messages.
            num_steps: Steps of the run.

        Raises:
            ConfigError: An option is out of range, or is given to an objective without a value function.
        """
        named = (
            "value_model",
            "value_lr",
            "value_warmup_steps",
            "value_coefficient",
            "value_clip",
            "trace_decay",
        )
        given = [name for name in named if getattr(self, name) is not None]
        if given and not has_value:
            raise ConfigError(
                f"{given[0]}: only used with a value function, and the objective {objective} has none, since its "
                f"baseline is {baseline}; leave it out, or choose --objective ppo or --baseline value"
            )
        if self.value_model is not None and not self.value_model.strip():
            raise ConfigError("value_model: expected head, self, or a model, got an empty name")
        if self.value_lr is not None and not (math.isfinite(self.value_lr) and self.value_lr > 0):
            raise ConfigError(f"value_lr: expected a finite number above 0, got {self.value_lr}")
        steps = self.value_warmup_steps or 0
        if not 0 <= steps < num_steps:
            raise ConfigError(
                f"value_warmup_steps: expected 0 to {num_steps - 1}, since the policy moves only in the other steps of "
                f"num_steps {num_steps}, got {steps}"
            )
