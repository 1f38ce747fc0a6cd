"""Objectives of the field under their names: one record each.

β is the paper's or the library's. Where `num_minibatches` and `num_epochs` are 1, every update is on-policy: all ratios
are 1, and no bound is met.
"""

from dataclasses import replace
from typing import Any

from klimb.core.objective import Objective

_ON_POLICY: dict[str, Any] = {"ratio": "none", "trust_region": "unbounded", "aggregation": "sequence_sum"}
_KL_IN_REWARD: dict[str, Any] = {"kl_place": "reward", "kl_credit": "whole", "kl_estimator": "k1"}
_KL_TO_GO: dict[str, Any] = _KL_IN_REWARD | {"kl_credit": "to_go"}
_GROUP: dict[str, Any] = {"baseline": "group_mean", "scale": "group_std"}

_REINFORCE = Objective(
    reproduces="Williams (1992), equation 11, with the reward of Ziegler et al. (2019); klimb's definition",
    baseline="leave_one_out",
    beta=0.05,
    **_KL_IN_REWARD,
    **_ON_POLICY,
)
_GRPO = Objective(
    reproduces="Shao et al. (2024), DeepSeekMath, equation 3; the paper states neither ε nor the denominator of the "
    "standard deviation",
    kl_estimator="k3",
    beta=0.04,
    aggregation="sequence_mean",
    **_GROUP,
)
_TRL_GRPO = Objective(
    reproduces="TRL 1.16, GRPOTrainer, by default",
    sampler_correction="mask",
    correction_level="sequence",
    correction_high=3.0,
    **_GROUP,
)
_REINFORCE_PLUS_PLUS = Objective(
    reproduces="Hu (2025), REINFORCE++; OpenRLHF 0.11, estimator reinforce",
    baseline="none",
    whiten_tokens=True,
    beta=0.01,
    **_KL_TO_GO,
)
_PPO = Objective(
    reproduces="Schulman et al. (2017), equations 7 and 11; TRL's PPOTrainer (removed in 1.16), verl gae",
    baseline="value",
    whiten_tokens=True,
    whiten_ddof=1,
    num_epochs=4,
    beta=0.05,
    **_KL_TO_GO,
)

_PRIME_RL = Objective(
    reproduces="prime-rl 559b447, its default loss", trust_region="probability_bounded", sampler_beta=2e-3
)

PRESETS: dict[str, Objective] = {
    "reinforce": _REINFORCE,
    "rloo": replace(_REINFORCE, reproduces="Ahmadian et al. (2024), Back to basics, section 3.2", beta=0.03),
    "trl_rloo": replace(
        _REINFORCE, reproduces="TRL 1.16, RLOOTrainer, by default", ratio="sequence", trust_region="clipped"
    ),
    "openrlhf_rloo": Objective(
        reproduces="OpenRLHF 0.11, estimator rloo", baseline="leave_one_out", beta=0.01, **_KL_TO_GO
    ),
    "reinforce_plus_plus": _REINFORCE_PLUS_PLUS,
    "reinforce_plus_plus_baseline": replace(
        _REINFORCE_PLUS_PLUS,
        reproduces="Hu (2025), REINFORCE++-baseline; OpenRLHF 0.11, estimator reinforce_baseline",
        baseline="group_mean",
    ),
    "remax": Objective(
        reproduces="Li et al. (2023), ReMax; verl, estimator remax",
        baseline="greedy",
        beta=0.001,
        **_KL_TO_GO,
        **_ON_POLICY,
    ),
    "opo": Objective(
        reproduces="Hao et al. (2025), arXiv 2505.23585; verl, estimator opo",
        baseline="length_weighted",
        **_ON_POLICY,
    ),
    "grpo": _GRPO,
    "trl_grpo": _TRL_GRPO,
    "verl_grpo": replace(
        _GRPO,
        reproduces="verl 0.10, estimator grpo with policy loss vanilla",
        beta=0.0,
        scale_epsilon=1e-6,
        clip_dual=3.0,
        aggregation="token_mean",
    ),
    "nemo_grpo": Objective(
        reproduces="NeMo-RL 7ea279a, estimator grpo with ClippedPGLossFn, by default",
        beta=0.01,
        baseline="leave_one_out",
        scale="others_std",
        scale_epsilon=1e-6,
    ),
    "dr_grpo": Objective(
        reproduces="Liu et al. (2025), Understanding R1-Zero-like training, section 3.2",
        aggregation="constant",
    ),
    "dapo": Objective(
        reproduces="Yu et al. (2025), DAPO, equations 8, 11 and 13; the paper makes 16 updates per batch",
        clip_high=0.28,
        aggregation="group_token_mean",
        drop_uniform_groups=True,
        overlong_buffer=0.2,
        **_GROUP,
    ),
    "lite_ppo": Objective(reproduces="arXiv 2508.08221, as TRL 1.16 has it", scale="batch_std"),
    "gspo": Objective(
        reproduces="Zheng et al. (2025), Group sequence policy optimization, equation 5; 4 updates per batch",
        ratio="sequence_mean",
        clip_low=3e-4,
        clip_high=4e-4,
        aggregation="sequence_mean",
        num_minibatches=4,
        **_GROUP,
    ),
    "luspo": Objective(
        reproduces="arXiv 2602.05261, as TRL 1.16 has it",
        ratio="sequence_mean",
        clip_low=2e-3,
        clip_high=2.5e-3,
        aggregation="sequence_sum",
        **_GROUP,
    ),
    "gmpo": Objective(
        reproduces="Zhao et al. (2025), Geometric-mean policy optimization, arXiv 2507.20673",
        ratio="sequence_mean",
        trust_region="clipped_geometric",
        clip_low=0.4,
        clip_high=0.4,
        aggregation="sequence_mean",
        **_GROUP,
    ),
    "cispo": Objective(
        reproduces="MiniMax (2025), MiniMax-M1, equations 4 and 5; upper bound of ScaleRL, arXiv 2510.13786",
        trust_region="truncated",
        clip_low=0.0,
        clip_high=5.0,
        **_GROUP,
    ),
    "scalerl": Objective(
        reproduces="arXiv 2510.13786, its loss",
        scale="batch_std",
        trust_region="truncated",
        clip_low=0.0,
        clip_high=5.0,
        aggregation="group_token_mean",
        drop_uniform_groups=True,
    ),
    "sapo": Objective(
        reproduces="Gao et al. (2025), Soft adaptive policy optimization, arXiv 2511.20347",
        trust_region="soft",
        aggregation="sequence_mean",
        **_GROUP,
    ),
    "vespo": Objective(
        reproduces="VESPO, arXiv 2602.10693, as TRL 1.16 has it but for its clamps; its W is the ratio to the sampler",
        ratio="sequence",
        trust_region="gamma",
        **_GROUP,
    ),
    "dppo": Objective(
        reproduces="arXiv 2602.04879; verl, policy loss dppo_tv",
        trust_region="probability_bounded",
        ratio_cap=20.0,
        **_GROUP,
    ),
    "prime_rl": _PRIME_RL,
    "max_rl": replace(
        _PRIME_RL,
        reproduces="MaxRL, arXiv 2602.02710, as prime-rl 559b447 has it; for rewards of at least 0",
        scale="group_mean",
    ),
    "importance_sampling": Objective(
        reproduces="tinker, loss importance_sampling", trust_region="unbounded", aggregation="sum"
    ),
    "dro": Objective(
        reproduces="tinker and verl, loss dro; the square is of each token's log-ratio, in papers of the completion's",
        ratio="none",
        trust_region="unbounded",
        aggregation="sum",
        sampler_beta=0.05,
    ),
    "deepseek_v3_2": Objective(
        reproduces="DeepSeek-V3.2, arXiv 2512.02556; its δ and β are not published",
        beta=0.01,
        aggregation="sequence_mean",
        max_drift=0.5,
        **_GROUP,
    ),
    "decoupled_ppo": replace(
        _PPO,
        reproduces="Hilton et al. (2021), Batch size-invariance for policy optimization; AReaL, verl",
        sampler_correction="truncate",
        correction_high=2.0,
    ),
    "ppo": _PPO,
}
"""The presets."""
