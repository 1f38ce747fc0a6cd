"""The step: rollout, advantages, gradient, weights."""
