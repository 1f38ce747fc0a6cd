"""What klimb raises.

Every error is a `KlimbError` and also the standard-library error that a caller
would expect, so that both `except klimb.KlimbError` and `except ValueError` work.
A message says what is wrong, where, and what to do.
"""


class KlimbError(Exception):
    """Base of every error that klimb raises on purpose."""


class ArgumentError(KlimbError, ValueError):
    """An argument of a function has the wrong shape, dtype or value."""


class LogRatioError(ArgumentError):
    """The exponential of a token's log-ratio is too large a number.

    Attributes:
        log_ratio: In nats.
        completion: The row of the completion.
        token: The position of the token.
        remedy: What to do.
    """

    def __init__(self, name: str, log_ratio: float, place: tuple[int, int], dtype: str, remedy: str) -> None:
        self.log_ratio, self.remedy = log_ratio, remedy
        self.completion, self.token = place
        super().__init__(
            f"{name}: the log-ratio {log_ratio:.4g} of completion {self.completion}, token {self.token}, is too large: "
            f"its exponential overflows {dtype}; {remedy}"
        )


class ConfigError(KlimbError, ValueError):
    """An option of a run is unknown, missing, or does not go with another."""


class DataError(KlimbError, ValueError):
    """A file of data cannot be read; the message gives the file and the line."""


class RewardError(KlimbError, RuntimeError):
    """A reward could not be loaded, or failed for more completions than may fail."""


class TooLongError(RewardError):
    """A text has more tokens than a reward model reads."""


class RewardHangsError(RewardError):
    """A reward is still busy with a call that was given up, and cannot be asked again."""


class ModelNotFoundError(KlimbError, FileNotFoundError):
    """No model at the given folder, file or hub name."""


class DivergedError(KlimbError, ArithmeticError):
    """The weights have gone where predictions or gradients are no longer finite numbers."""


class PreflightError(KlimbError, RuntimeError):
    """A check before the first step failed; the message gives the remedy."""


class SamplerGapError(KlimbError, ArithmeticError):
    """Sampling and training give the same tokens different log-probs."""


class GuardError(KlimbError, ArithmeticError):
    """A run has passed a bound that its options state, and was stopped."""


class RunFolderError(KlimbError, OSError):
    """A run folder exists already, is missing, or lacks a part."""


class RankError(KlimbError, RuntimeError):
    """A process of a run on several was lost, does not fit the others, or cannot find them."""


class MissingExtraError(KlimbError, ImportError):
    """A feature needs packages of an extra that is not installed."""


class StoreError(KlimbError, OSError):
    """A store of feedback cannot be opened, read or written; what was acknowledged before is in it."""


class AlreadyJudgedError(KlimbError, ValueError):
    """A rater has judged this pair before."""
