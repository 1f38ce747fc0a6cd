"""Per-sample gradients ∇ log π of a small model, in row blocks.

Axes: N samples, P parameters, n samples of a block.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from klimb.errors import ArgumentError


def log_prob_gradients(
    model: torch.nn.Module,
    log_prob: Callable[..., Tensor],
    samples: Sequence[Tensor],
    *,
    block_size: int = 32,
) -> Iterator[Float[Tensor, "n P"]]:
    """Differentiate the log-prob of each sample by all parameters that require a gradient.

    G_i = ∇_w log π_w(y_i)

    Args:
        model: The policy. Its trainable parameters, in the order of `model.parameters()`, are the P columns.
        log_prob: A function `log_prob(model, *sample) -> ()` that calls the model it is given and returns
            log π of one sample, in nats; torch.func must be able to follow it.
        samples: Tensors whose first axis is the samples, (N, …); `log_prob` gets a row of each.
        block_size: n, samples differentiated at once: memory is n·P numbers.

    Yields:
        Blocks (n, P) in the order of the samples, detached: what `streamed_weight_update` takes, and, put
        together, `rlhf_weight_update`.

    Raises:
        ArgumentError: No tensors, tensors of different lengths, or no parameter that requires a gradient.

    Reference:
        torch.func's per-sample gradients: vmap of grad of functional_call.

    Example:
        >>> model = torch.nn.Linear(2, 3, bias=False).double()
        >>> def log_prob(model, state, action):
        ...     return torch.log_softmax(model(state), -1).gather(-1, action[None])[0]
        >>> states, actions = torch.ones(5, 2).double(), torch.zeros(5, dtype=torch.long)
        >>> [tuple(block.shape) for block in log_prob_gradients(model, log_prob, (states, actions), block_size=4)]
        [(4, 6), (1, 6)]
    """
    lengths = {len(tensor) for tensor in samples}
    if len(lengths) != 1:
        raise ArgumentError(f"samples: expected tensors of one length, got {sorted(lengths) or 'none'}")
    if block_size < 1:
        raise ArgumentError(f"block_size: expected at least 1, got {block_size}")
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise ArgumentError("model: expected at least one parameter that requires a gradient")
    fixed = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}

    def of_sample(parameters: dict[str, Tensor], *sample: Tensor) -> Tensor:
        def call(*inputs: Any, **options: Any) -> Any:
            return torch.func.functional_call(model, {**fixed, **parameters}, inputs, options)

        return log_prob(call, *sample)

    in_dims = (None, *[0] * len(samples))
    per_sample = torch.func.vmap(torch.func.grad(of_sample), in_dims=in_dims)
    (num_samples,) = lengths
    for first in range(0, num_samples, block_size):
        block = per_sample(parameters, *(tensor[first : first + block_size] for tensor in samples))
        yield torch.cat([block[name].flatten(start_dim=1) for name in parameters], dim=1).detach()
