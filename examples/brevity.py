"""A reward of one's own: short words, and a full stop at the end.

klimb train --model MODEL --prompts examples/openers.jsonl --reward examples/brevity.py:plain_words --out runs/plain
"""


def plain_words(completions: list[str], **columns: object) -> list[float]:
    """Prefer short words; an empty completion has failed."""
    scores = []
    for completion in completions:
        words = completion.split()
        if not words:
            scores.append(-5.0)
            continue
        letters_per_word = sum(map(len, words)) / len(words)
        scores.append(4.5 - letters_per_word + completion.rstrip().endswith("."))
    return scores
