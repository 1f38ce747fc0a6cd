"""Judgements needed for a held-out accuracy: pairs asked at random, and where an ensemble disagrees most.

python benchmarks/asking.py [--seeds 0 1 2 3 4]     (some minutes; the model and the ratings are fetched once)

People's ratings of film-review sentences (15 to 20 people each) stand for the people who are asked: they prefer the
sentence with the higher mean rating, and call it a tie where the means differ by less than 0.3. Each way begins
with the same random pairs, learns an ensemble from what was said so far, and asks about the next batch. All are
tested on the same pairs of texts that nobody was asked about, more than 0.3 apart. Accuracies are means over
seeds, with the standard deviation; a judgement counts whether it was a tie or not.
"""

import argparse
from pathlib import Path

import numpy as np

from klimb.demo.model import fetch_model
from klimb.demo.ratings import fetch_ratings
from klimb.feedback.comparison import Rating
from klimb.feedback.formats import Feedback
from klimb.feedback.pairs import Pairs, make_pairs
from klimb.reward.learn.active import disagreement, most_telling
from klimb.reward.learn.evaluation import evaluate
from klimb.reward.learn.head import fit_head
from klimb.reward.scorer import Scorer

NUM_TEXTS, NUM_HELD_OUT, NUM_LAYERS = 3000, 600, 16
GAP = 0.3
BATCH, NUM_BATCHES, NUM_CANDIDATES, NUM_MEMBERS = 50, 16, 4000, 8
WAYS = ("random", "disagreement")
TARGETS = (0.70, 0.72, 0.74, 0.76, 0.77, 0.78)


def read_ratings() -> tuple[list[str], np.ndarray]:
    """Texts and their mean ratings, in an order drawn once."""
    rows = [line.split("\t") for line in fetch_ratings().read_text(encoding="utf-8").splitlines()]
    order = np.random.default_rng(0).permutation(len(rows))[:NUM_TEXTS]
    return [rows[index][2].strip() for index in order], np.array([float(rows[i][1]) for i in order])


def ask(left: np.ndarray, right: np.ndarray, ratings: np.ndarray) -> np.ndarray:
    """What people say of pairs."""
    gaps = ratings[left] - ratings[right]
    return np.where(np.abs(gaps) < GAP, 0.0, np.sign(gaps))


def as_pairs(texts: list[str], left: np.ndarray, right: np.ndarray, outcomes: np.ndarray) -> Pairs:
    """Judgements as what a reward is learned from."""
    return Pairs([""] * len(texts), texts, left, right, outcomes)


def learn(way: str, seed: int, texts: list[str], ratings: np.ndarray, features: np.ndarray) -> list[float]:
    """Ask batch after batch, and return the held-out accuracy after each."""
    is_pool = np.ones(len(texts), dtype=bool)
    held_out = np.random.default_rng([seed, 0]).choice(len(texts), NUM_HELD_OUT, replace=False)
    is_pool[held_out] = False
    pool = is_pool.nonzero()[0]
    said = Feedback(ratings=[Rating("", texts[i], float(ratings[i])) for i in held_out])
    tested = make_pairs(said, min_gap=GAP, pairs_per_text=10, seed=seed)
    row_of = {text: row for row, text in enumerate(texts)}
    tested_features = features[[row_of[text] for text in tested.completions]]

    generator = np.random.default_rng([seed, 1])
    left, right = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    members = np.zeros((0, features.shape[1]))
    accuracies: list[float] = []
    for number in range(NUM_BATCHES):
        first, second = generator.choice(pool, NUM_CANDIDATES), generator.choice(pool, NUM_CANDIDATES)
        is_pair = first != second
        first, second = first[is_pair], second[is_pair]
        worth = generator.random(len(first))
        if way == "disagreement" and number > 0:
            worth = disagreement(features, members, first, second)
        chosen = most_telling(worth, first, second, BATCH)
        left, right = np.concatenate([left, first[chosen]]), np.concatenate([right, second[chosen]])
        judged = as_pairs(texts, left, right, ask(left, right, ratings))
        head = fit_head(features, judged, seed=seed)
        accuracies.append(evaluate(head.scores(tested_features), tested, head.tie, seed).accuracy)
        drawn = [generator.integers(len(judged), size=len(judged)) for _ in range(NUM_MEMBERS)]
        members = np.stack(
            [fit_head(features, judged.take(rows), ridges=(head.ridge,)).weights for rows in drawn]
        )
    return accuracies


def needed(accuracies: np.ndarray, target: float) -> str:
    """Judgements at which the mean accuracy first reaches a target, between batches linearly."""
    reached = (accuracies >= target).nonzero()[0]
    if len(reached) == 0:
        return f"over {BATCH * NUM_BATCHES}"
    at = int(reached[0])
    if at == 0:
        return f"up to {BATCH}"
    before, after = accuracies[at - 1], accuracies[at]
    return f"{BATCH * (at + (target - before) / (after - before)):.0f}"


def main() -> None:
    """Print both learning curves, and what each way needs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    arguments = parser.parse_args()
    texts, ratings = read_ratings()
    scorer = Scorer.from_base(Path(fetch_model()), num_layers=NUM_LAYERS)
    features = scorer.features([scorer.encode("", text) for text in texts])
    found = {
        way: np.array([learn(way, seed, texts, ratings, features) for seed in arguments.seeds])
        for way in WAYS
    }
    print("| judgements | at random | where members disagree | difference, seed by seed |\n|---|---|---|---|")
    for at in range(NUM_BATCHES):
        random, telling = (found[way][:, at] for way in WAYS)
        gain = telling - random
        cells = [f"{x.mean():.3f} ± {x.std(ddof=1):.3f}" for x in (random, telling)]
        print(f"| {BATCH * (at + 1)} | {' | '.join(cells)} | {gain.mean():+.3f} ± {gain.std(ddof=1):.3f} |")
    print("\n| held-out accuracy | judgements at random | where members disagree |\n|---|---|---|")
    for target in TARGETS:
        print(f"| {target:.2f} | {' | '.join(needed(found[way].mean(axis=0), target) for way in WAYS)} |")


if __name__ == "__main__":
    main()
