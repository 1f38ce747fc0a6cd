"""Active learning: the next pairs to label are those where the ensemble disagrees most.

Axes: n texts, M pairs, D features, K members.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from klimb.core.preferences import preference_disagreement
from klimb.errors import ConfigError, DataError
from klimb.feedback.store.store import Store
from klimb.reward.scorer import Scorer


def disagreement(
    features: Float[np.ndarray, "n D"],
    members: Float[np.ndarray, "K D"],
    left: Int[np.ndarray, " M"],
    right: Int[np.ndarray, " M"],
) -> Float[np.ndarray, " M"]:
    """Find how much the answer to each pair would tell about which member is right, in nats.

    Args:
        features: What a head sees of each text.
        members: Heads of the ensemble.
        left: Index of each pair's left text.
        right: Index of its right text.
    """
    scores = members.astype(np.float64) @ features.astype(np.float64).T
    return preference_disagreement(scores[:, left] - scores[:, right])


def most_telling(
    worth: Float[np.ndarray, " M"], left: Int[np.ndarray, " M"], right: Int[np.ndarray, " M"], count: int
) -> Int[np.ndarray, " m"]:
    """Choose the pairs of the highest worth, no text in two of them: answers about one text tell much the same.

    Args:
        worth: Of each pair.
        left: Index of each pair's left text.
        right: Index of its right text.
        count: How many at most.

    Returns:
        Their indices, the highest first.
    """
    chosen: list[int] = []
    used: set[int] = set()
    for index in np.argsort(-worth, kind="stable").tolist():
        ends = {int(left[index]), int(right[index])}
        if not used & ends:
            used |= ends
            chosen.append(index)
        if len(chosen) == count:
            break
    return np.array(chosen, dtype=np.int64)


def prioritise(store: Store, reward: str, say: Callable[[str], None] = lambda _: None) -> int:
    """Let a store ask first about the pairs that tell most, by an ensemble that was learned so far.

    Args:
        store: Its pairs that nobody has judged are put in order.
        reward: Folder of a reward that was learned with `--num-members`.
        say: Takes lines of progress.

    Returns:
        How many pairs were put in order.

    Raises:
        ConfigError: The reward is not an ensemble.
        DataError: Every pair has been judged.
        ModelNotFoundError: No such reward.
    """
    questions = store.open_questions()
    if not questions:
        raise DataError(f"{store.where}: every pair has been judged; add more with klimb label --model …")
    scorer = Scorer.load(reward)
    if scorer.members is None:
        raise ConfigError(
            f"reward {reward}: has one member, which cannot disagree with itself: learn it with "
            "klimb reward train --num-members 4"
        )
    say(f"Reading {len(questions):,} pairs …")
    texts = [
        scorer.encode(question.prompt, text)
        for question in questions
        for text in (question.first, question.second)
    ]
    left = np.arange(len(questions)) * 2
    worth = disagreement(scorer.features(texts), scorer.members, left, left + 1)
    store.set_priorities(
        {question.pair_id: float(value) for question, value in zip(questions, worth, strict=True)}
    )
    return len(questions)
