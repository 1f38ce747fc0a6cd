"""The reduction Σ_i a_i G_i at memory bandwidth: dtypes, layouts, blocks."""

from klimb.kernels.reduce import weighted_sum

__all__ = ["weighted_sum"]
