"""Gradients and advantages of OpenRLHF's and verl's own functions, run by themselves.

The folder of the packages, installed without what they depend on, is the first argument. What their modules import and
the losses do not use (DeepSpeed, Ray, flash-attention, configurations) is replaced by empty modules. Reads JSON from
standard input: arrays, and for each case the function and its options. Writes the answers as JSON.
"""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch

UNUSED = {
    "deepspeed": (),
    "omegaconf": ("DictConfig",),
    "tensordict": ("TensorDict",),
    "verl.trainer.config": ("AlgoConfig",),
    "verl.workers.config": ("ActorConfig",),
    "verl.utils.device": ("get_device_name", "get_torch_device"),
}
PACKAGES = (
    "openrlhf",
    "openrlhf.models",
    "verl",
    "verl.trainer",
    "verl.trainer.ppo",
    "verl.utils",
    "verl.workers",
)


def load(folder):
    """Import the modules of the losses without running the packages' own initialisation."""
    for name in PACKAGES:
        module = sys.modules[name] = ModuleType(name)
        module.__path__ = [str(folder.joinpath(*name.split(".")))]
    for name, names in UNUSED.items():
        module = sys.modules[name] = ModuleType(name)
        for each in names:
            setattr(module, each, type(each, (), {}))
    groups = importlib.import_module("verl.utils.groupwise")
    sys.modules["verl.utils"].as_torch_index = groups.as_torch_index
    sys.modules["verl.utils"].group_mean_std = groups.group_mean_std
    return SimpleNamespace(
        loss=importlib.import_module("openrlhf.models.loss"),
        kl=importlib.import_module("openrlhf.models.utils"),
        verl=importlib.import_module("verl.trainer.ppo.core_algos"),
    )


def openrlhf_policy(peers, options, arrays, log_probs):
    """OpenRLHF's PolicyLoss."""
    found = peers.loss.PolicyLoss(**options)(
        log_probs,
        arrays["old_log_probs"],
        arrays["advantages"],
        arrays["mask"],
        arrays["sampler_log_probs"],
        batch_num_tokens=float(arrays["mask"].sum()),
        global_batch_size=float(len(log_probs)),
    )
    return found[0]


def openrlhf_kl(peers, options, arrays, log_probs):
    """OpenRLHF's KL loss."""
    kl = peers.kl.compute_approx_kl(log_probs, arrays["ref_log_probs"], options["estimator"])
    tokens = float(arrays["mask"].sum())
    return peers.loss.aggregate_loss(kl, arrays["mask"], batch_num_tokens=tokens)


def verl_config(options):
    """An ActorConfig with the fields that the losses read."""
    chosen = {
        "clip_ratio": 0.2,
        "clip_ratio_low": 0.2,
        "clip_ratio_high": 0.2,
        "tau_pos": 1.0,
        "tau_neg": 1.05,
        "policy_loss": SimpleNamespace(dro_beta=options.pop("dro_beta", None)),
        "global_batch_info": options.pop("batch_info", {}),
        **options,
    }
    config = sys.modules["verl.workers.config"].ActorConfig()
    vars(config).update(chosen)
    type(config).get = lambda self, name, default=None: vars(self).get(name, default)
    return config


def verl_policy(peers, options, arrays, log_probs):
    """One of verl's policy losses."""
    options = dict(options)
    loss = peers.verl.get_policy_loss_fn(options.pop("loss_mode"))
    mode = options.pop("loss_agg_mode", "token-mean")
    weights = options.pop("sampler_weights", None)
    return loss(
        old_log_prob=arrays["old_log_probs"],
        log_prob=log_probs,
        advantages=arrays["advantages"],
        response_mask=arrays["mask"],
        loss_agg_mode=mode,
        config=verl_config(options),
        rollout_is_weights=None if weights is None else torch.tensor(weights, dtype=torch.float64),
    )[0]


def verl_kl(peers, options, arrays, log_probs):
    """Verl's KL loss."""
    kl = peers.verl.kl_penalty(log_probs, arrays["ref_log_probs"], options["estimator"])
    return peers.verl.agg_loss(kl, arrays["mask"], "token-mean")


def openrlhf_value(peers, options, arrays, values):
    """OpenRLHF's ValueLoss; `values` stand where log-probs do."""
    loss = peers.loss.ValueLoss(**options)
    tokens = float(arrays["mask"].sum())
    return loss(
        values, arrays["old_log_probs"], arrays["advantages"], arrays["mask"], batch_num_tokens=tokens
    )


def verl_value(peers, options, arrays, values):
    """Verl's value loss; `values` stand where log-probs do."""
    return peers.verl.compute_value_loss(
        values, arrays["advantages"], arrays["old_log_probs"], arrays["mask"], options["clip"]
    )[0]


LOSSES = {
    function.__name__: function
    for function in (openrlhf_policy, openrlhf_kl, openrlhf_value, verl_policy, verl_kl, verl_value)
}


def advantages(peers, case):
    """One of verl's advantage estimators, on rewards that stand at the last token."""
    arrays = {name: torch.tensor(values, dtype=torch.float64) for name, values in case["arrays"].items()}
    groups = {} if case["groups"] is None else {"index": case["groups"]}
    config = SimpleNamespace(**case["config"]) if case["config"] else None
    estimator = peers.verl.get_adv_estimator_fn(case["estimator"])
    extra = {} if config is None else {"config": config}
    return estimator(**arrays, **groups, **extra, **case["options"])[0].tolist()


def gradient(peers, case, arrays):
    """The gradient of a case's loss with respect to log-probs, or values."""
    log_probs = arrays["log_probs"].clone().requires_grad_()
    LOSSES[case["loss"]](peers, case["options"], arrays, log_probs).backward()
    return log_probs.grad.tolist()


def main():
    """Answer one request."""
    peers = load(Path(sys.argv[1]))
    request = json.load(sys.stdin)
    arrays = {name: torch.tensor(values, dtype=torch.float64) for name, values in request["arrays"].items()}
    found = {name: gradient(peers, case, arrays) for name, case in request["losses"].items()}
    estimated = {name: advantages(peers, case) for name, case in request["advantages"].items()}
    print("answers:" + json.dumps({"losses": found, "advantages": estimated}))  # noqa: T201  what it is run for


if __name__ == "__main__":
    main()
