"""Whether drawing on a GPU may run a model's layers by Triton's kernels, found out by trying."""

import torch

from klimb.kernels import gpu
from klimb.policy.completions import Completions
from klimb.policy.distribution import SamplingDistribution
from klimb.policy.engine import sampling
from klimb.policy.engine.cuda_graph import can_replay
from klimb.policy.engine.gpu_decoder import GPUDecoder
from klimb.policy.engine.prefix import Engine
from klimb.policy.engine.token_loop import BatchSize, TokenLoop

_TOLERANCE = 2e-3  # nats per token, as where it is tried whether prompts can be shared
_HALF_TOLERANCE = 0.1


@torch.no_grad()
def fuse_if_possible(engine: Engine, completions: Completions) -> str:
    """Let an engine draw by Triton's kernels where that works, tried on prompts of a few tokens.

    Tokens are drawn by them, and their log-probs compared with those that scoring finds.

    Args:
        engine: The model, whose `fuses` is set.
        completions: Some, of whose prompts tokens are drawn.

    Returns:
        Why not, or "" where they are used, forbidden, or not for this device or model.
    """
    weight = engine.vocabulary.head.weight
    if gpu.is_forbidden() or not can_replay(weight) or not GPUDecoder.fits(engine.backbone):
        return ""
    if not gpu.is_installed():
        return "Triton is not installed"
    num_tokens = completions.ids.shape[1]
    size = BatchSize(len(completions.prompts), max(map(len, completions.prompts)), num_tokens)
    uniforms = torch.linspace(0.05, 0.95, len(completions) * num_tokens, dtype=torch.float64)
    engine.fuses = True
    try:
        loop = TokenLoop(engine, completions.prompt_of, size, SamplingDistribution(), [])
        drawn = loop.draw(completions.prompts, uniforms.view(-1, num_tokens).to(weight.device))
        expected = sampling.score(engine, drawn, SamplingDistribution())
        gap = float((drawn.token_log_probs - expected).abs().max())
    except Exception as error:  # of whatever kind a compiler's is
        engine.fuses = False
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"
    engine.fuses = gap <= (_HALF_TOLERANCE if weight.dtype in (torch.float16, torch.bfloat16) else _TOLERANCE)
    return "" if engine.fuses else f"log-probs of tokens would differ by {gap:.2g} nats"
