"""klimb fine-tunes model weights from human feedback with a KL-penalised policy gradient.

Importing it loads NumPy and the array-API layer only; PyTorch and the rest load with the
parts that need them.
"""

from klimb.core.advantages import batch_mean, group_normalised, leave_one_out, no_baseline, whiten
from klimb.core.kl import adaptive_beta, exact_kl, k1, k2, k3
from klimb.core.objectives import reinforce
from klimb.core.update import adjusted_rewards, gradient_ascent, policy_gradient, rlhf_weight_update
from klimb.errors import KlimbError

__version__ = "0.1.0"

__all__ = [
    "KlimbError",
    "adaptive_beta",
    "adjusted_rewards",
    "batch_mean",
    "exact_kl",
    "gradient_ascent",
    "group_normalised",
    "k1",
    "k2",
    "k3",
    "leave_one_out",
    "no_baseline",
    "policy_gradient",
    "reinforce",
    "rlhf_weight_update",
    "whiten",
]
