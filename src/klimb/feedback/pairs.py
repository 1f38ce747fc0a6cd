"""From judgements to pairs of texts that a reward can be learned from, and their split by prompt.

Axes: n texts, M pairs.
"""

import hashlib
import itertools
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from klimb.errors import DataError
from klimb.feedback.comparison import OUTCOMES, Comparison, Rating
from klimb.feedback.formats import Feedback
from klimb.io.show import Text

Key = tuple[str, str]


@dataclass(frozen=True)
class Pairs:
    """Pairs of texts and their outcomes.

    Attributes:
        prompts: Of each text, (n,).
        completions: The texts, each once with its prompt, (n,).
        left: Index of each pair's left text, (M,).
        right: Index of its right text, (M,).
        outcomes: 1 for left, −1 for right, 0 for a tie, (M,).
    """

    prompts: list[Text]
    completions: list[str]
    left: Int[np.ndarray, " M"]
    right: Int[np.ndarray, " M"]
    outcomes: Float[np.ndarray, " M"]

    def __len__(self) -> int:
        return len(self.outcomes)

    @property
    def units(self) -> Int[np.ndarray, " n"]:
        """What must not be split, of each text: its prompt, or itself where it has none."""
        keys = [_key(p) or "\0" + c for p, c in zip(self.prompts, self.completions, strict=True)]
        return np.unique(keys, return_inverse=True)[1]

    def margins(self, scores: Float[np.ndarray, " n"]) -> Float[np.ndarray, " M"]:
        """s(left) − s(right) of each pair, for scores of the texts."""
        return scores[self.left] - scores[self.right]

    def take(self, rows: np.ndarray) -> "Pairs":
        """Some of the pairs, of the same texts."""
        return replace(self, left=self.left[rows], right=self.right[rows], outcomes=self.outcomes[rows])


@dataclass(frozen=True)
class Split:
    """Judgements to learn from and others to test on, with no prompt in both.

    Attributes:
        train: To learn from.
        held_out: To test on.
        num_dropped: Comparisons of texts without a prompt of which one is here, the other there.
    """

    train: Feedback
    held_out: Feedback
    num_dropped: int


def split_by_prompt(feedback: Feedback, share: float, seed: int) -> Split:
    """Hold out a share of the prompts; where a text has no prompt, it counts as one itself.

    The side of a prompt depends on it and the seed alone, not on the rows around it.
    """
    parts = Feedback(), Feedback()
    num_dropped = 0
    for rating in feedback.ratings:
        parts[_side(rating.prompt, rating.completion, share, seed)].ratings.append(rating)
    for comparison in feedback.comparisons:
        sides = [_side(comparison.prompt, text, share, seed) for text in (comparison.left, comparison.right)]
        if sides[0] == sides[1]:
            parts[sides[0]].comparisons.append(comparison)
        else:
            num_dropped += 1
    return Split(*parts, num_dropped)


def make_pairs(feedback: Feedback, *, min_gap: float = 0.0, pairs_per_text: int = 20, seed: int = 0) -> Pairs:
    """Gather comparisons, and pair up what was rated.

    Ratings of a text are averaged over raters. Texts of one prompt are all compared with each other; texts
    without a prompt each with some others, drawn at random.

    Args:
        feedback: What people said.
        min_gap: Least difference of two average ratings that counts as a preference; smaller ones make no pair.
        pairs_per_text: How many others a text without a prompt is paired with.
        seed: Decides which.

    Raises:
        DataError: Nothing makes a pair.
    """
    index_of: dict[Key, int] = {}
    prompts: list[Text] = []
    completions: list[str] = []
    found: list[tuple[int, int, int]] = []

    def index(prompt: Text, completion: str) -> int:
        key = _key(prompt), completion
        if key not in index_of:
            index_of[key] = len(prompts)
            prompts.append(prompt)
            completions.append(completion)
        return index_of[key]

    for item in itertools.chain(
        feedback.comparisons, compare_ratings(feedback.ratings, min_gap, pairs_per_text, seed)
    ):
        left, right = index(item.prompt, item.left), index(item.prompt, item.right)
        found.append((left, right, OUTCOMES[item.preferred]))
    if not found:
        raise DataError(f"no two texts make a pair: {feedback.summary}, min_gap {min_gap:g}")
    columns = np.array(found)
    return Pairs(prompts, completions, columns[:, 0], columns[:, 1], columns[:, 2].astype(np.float64))


def compare_ratings(
    ratings: list[Rating], min_gap: float, pairs_per_text: int, seed: int
) -> Iterable[Comparison]:
    """Pair up what was rated, as `make_pairs` says."""
    scores: dict[Key, list[float]] = defaultdict(list)
    prompt_of: dict[Key, Text] = {}
    for rating in ratings:
        key = _key(rating.prompt), rating.completion
        scores[key].append(rating.score)
        prompt_of[key] = rating.prompt
    mean = {key: float(np.mean(values)) for key, values in scores.items()}
    by_prompt: dict[str, list[Key]] = defaultdict(list)
    for key in mean:
        by_prompt[key[0]].append(key)
    generator = np.random.default_rng(seed)
    for prompt, keys in by_prompt.items():
        if prompt:
            candidates = itertools.combinations(keys, 2)
        else:
            others = generator.integers(len(keys), size=(len(keys), pairs_per_text))
            chosen = {(min(i, int(j)), max(i, int(j))) for i, row in enumerate(others) for j in row if i != j}
            candidates = ((keys[i], keys[j]) for i, j in sorted(chosen))
        for left, right in candidates:
            gap = mean[left] - mean[right]
            if abs(gap) >= min_gap and gap != 0:
                yield Comparison(prompt_of[left], left[1], right[1], "left" if gap > 0 else "right")


def _key(prompt: Text) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True)


def _side(prompt: Text, completion: str, share: float, seed: int) -> int:
    digest = hashlib.sha256(f"{seed}:{_key(prompt) or completion}".encode()).digest()
    return int(int.from_bytes(digest[:8], "big") < share * 2**64)
