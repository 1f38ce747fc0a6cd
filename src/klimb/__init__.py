"""klimb fine-tunes model weights from human feedback with a KL-penalised policy gradient.

Importing it loads NumPy and the array-API layer only; PyTorch and the rest load with the
parts that need them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from klimb.core.advantages import batch_mean, group_normalised, leave_one_out, no_baseline, whiten
from klimb.core.aggregation import Denominators, aggregation, count_denominators
from klimb.core.kl import adaptive_beta, exact_kl, k1, k2, k3
from klimb.core.objective import Objective
from klimb.core.presets import PRESETS
from klimb.core.score_weights import TokenBatch, score_weights
from klimb.core.stream import streamed_weight_update
from klimb.core.surrogate import reinforce
from klimb.core.update import (
    adjusted_rewards,
    gradient_ascent,
    policy_gradient,
    reinforce_gradient,
    rlhf_weight_update,
)
from klimb.data.blocks import row_blocks
from klimb.errors import KlimbError, MissingExtraError
from klimb.version import __version__ as __version__

if TYPE_CHECKING:
    from klimb.api import Policy, Run, check, compare, train
    from klimb.loop import Optimizer, rollout
    from klimb.model.gradients import log_prob_gradients
    from klimb.reward_model import RewardModel
    from klimb.training.signals import RunInterrupted

__all__ = [
    "PRESETS",
    "Denominators",
    "KlimbError",
    "Objective",
    "Optimizer",
    "Policy",
    "RewardModel",
    "Run",
    "RunInterrupted",
    "TokenBatch",
    "adaptive_beta",
    "adjusted_rewards",
    "aggregation",
    "batch_mean",
    "check",
    "compare",
    "count_denominators",
    "exact_kl",
    "gradient_ascent",
    "group_normalised",
    "k1",
    "k2",
    "k3",
    "leave_one_out",
    "log_prob_gradients",
    "no_baseline",
    "policy_gradient",
    "reinforce",
    "reinforce_gradient",
    "rlhf_weight_update",
    "rollout",
    "row_blocks",
    "score_weights",
    "streamed_weight_update",
    "train",
    "whiten",
]


_LOADED_WHEN_ASKED = {
    "Optimizer": "klimb.loop",
    "Policy": "klimb.api",
    "RewardModel": "klimb.reward_model",
    "Run": "klimb.api",
    "RunInterrupted": "klimb.training.signals",
    "check": "klimb.api",
    "compare": "klimb.api",
    "rollout": "klimb.loop",
    "log_prob_gradients": "klimb.model.gradients",
    "train": "klimb.api",
}


def __getattr__(name: str) -> Any:
    """Load what needs PyTorch when it is asked for."""
    if name not in _LOADED_WHEN_ASKED:
        raise AttributeError(f"module 'klimb' has no attribute {name!r}")
    try:
        return getattr(import_module(_LOADED_WHEN_ASKED[name]), name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("klimb"):
            raise
        raise MissingExtraError(
            f"klimb.{name} needs the train extra, which has {error.name}: pip install 'klimb[train]'"
        ) from error
