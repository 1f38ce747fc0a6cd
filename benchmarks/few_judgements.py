"""What a reward learns from few judgements: held-out accuracy and log-likelihood, by how many pairs were judged.

python benchmarks/few_judgements.py [--seeds 10] [--judgements 0 20 60 100 200 400] [--completions 8] [--raters vader …]

SmolLM2's own completions of the demo's openers, 24 tokens, cut where they are. A simulated rater judges pairs of
completions of one training opener; tested are all pairs of the 32 held-out openers that the rater tells apart. Raters:
vader (VADER's score, one answer in twenty turned over), length (the longer text, two more words for each full stop,
one in twenty turned over), film (a reward learned from people's ratings of film-review sentences: Bradley–Terry
probabilities). Ways to learn:

  last       the last token's features, ridge by cross-validation: what klimb did before it had evidence
  question   the features after klimb's question, averaged by evidence
  criterion  the same with the criterion's own score as prior mean: cheerful words, or for the length rule long ones
"""

import argparse
import itertools
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from klimb.config.criterion import QUESTION, Criterion
from klimb.config.pairwise import LabelConfig
from klimb.core.preferences import preference_nll
from klimb.core.rng import Stream
from klimb.data.prompts import read_prompts
from klimb.demo.demo import reward_config
from klimb.demo.model import fetch_model
from klimb.demo.ratings import fetch_ratings, write_ratings
from klimb.feedback.pairs import Pairs
from klimb.io.show import Text
from klimb.pairwise.candidates import draw_completions, find_models
from klimb.policy.policy import SampleKey
from klimb.reward.learn.criterion import criterion_direction
from klimb.reward.learn.evidence import fit_by_evidence
from klimb.reward.learn.head import fit_head
from klimb.reward.learn.training import train_reward
from klimb.reward.scorer import Scorer
from klimb.reward.vader import vader

CRITERIA = {
    "vader": "good, happy, positive, cheerful, great, wonderful / bad, sad, negative, gloomy, terrible, awful",
    "film": "good, happy, positive, cheerful, great, wonderful / bad, sad, negative, gloomy, terrible, awful",
    "length": "long, detailed, complete / short, brief, unfinished",
}
NOISE = 0.05


def draw(model: Path, num_completions: int) -> tuple[list[Text], list[str], np.ndarray, np.ndarray]:
    """Return prompts and completions, in groups, and the indices of those to learn from and to test on."""
    data = Path(__file__).parent.parent / "src" / "klimb" / "demo"
    rows = [
        row for name in ("train_openers", "held_out_openers") for row in read_prompts(data / f"{name}.jsonl")
    ]
    num_train = len(read_prompts(data / "train_openers.jsonl"))
    config = LabelConfig(
        model=(str(model),), prompts=data / "train_openers.jsonl", max_new_tokens=24, temperature=0.8
    )
    (named,) = find_models(config.model)
    found = draw_completions(
        named, rows, config, num_completions, SampleKey(0, 0, list(range(len(rows))), Stream.LABEL)
    )
    prompts = [row.prompt for row in rows for _ in range(num_completions)]
    completions = [candidate.text for group in found.candidates for candidate in group]
    first_test = num_train * num_completions
    return prompts, completions, np.arange(first_test), np.arange(first_test, len(prompts))


def features(
    model: Path, prompts: list[Text], completions: list[str], question: str, criterion: str | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Read every text once; return what the head sees, and the criterion's direction."""
    scorer = Scorer.from_base(model, question=question)
    texts = [scorer.encode(prompt, text) for prompt, text in zip(prompts, completions, strict=True)]
    scorer.settle_padding(texts)
    direction = None
    if criterion is not None:
        direction = criterion_direction(Criterion.parse(criterion), model, scorer.model, scorer.tokenizer)
    return scorer.features(texts), direction


def rater_scores(name: str, model: Path, prompts: list[Text], completions: list[str]) -> np.ndarray:
    """What a rater thinks of each text."""
    if name == "vader":
        return np.array(vader(list(completions)))
    if name == "length":
        return np.array(
            [len(text.split()) + 2 * len(re.findall(r"[.!?]", text)) for text in completions], dtype=float
        )
    folder = Path(tempfile.mkdtemp(prefix="klimb-few-"))
    write_ratings(fetch_ratings(), folder / "ratings.jsonl", 2000, 0)
    result = train_reward(reward_config(model, folder / "ratings.jsonl", folder / "reward", 0))
    scorer = Scorer.load(result.folder)
    return scorer.scores([scorer.encode(p, c) for p, c in zip(prompts, completions, strict=True)]).astype(
        np.float64
    )


def pairs_within(prompts: list[Text], rows: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """All pairs of completions of one prompt that the rater tells apart, (M, 2)."""
    groups = [list(group) for _, group in itertools.groupby(rows, key=lambda row: prompts[row])]
    every = np.array([pair for group in groups for pair in itertools.combinations(group, 2)])
    return every[scores[every[:, 0]] != scores[every[:, 1]]]


def judge(name: str, pairs: np.ndarray, scores: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """What the rater says of each pair: 1 left, −1 right."""
    margins = scores[pairs[:, 0]] - scores[pairs[:, 1]]
    if name == "film":
        return np.where(generator.random(len(pairs)) < 1 / (1 + np.exp(-margins)), 1.0, -1.0)
    return np.sign(margins) * np.where(generator.random(len(pairs)) < NOISE, -1.0, 1.0)


def main() -> None:
    """Print a table for each rater."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--judgements", type=int, nargs="+", default=[0, 20, 60, 100, 200, 400])
    parser.add_argument("--completions", type=int, default=8)
    parser.add_argument("--raters", nargs="+", choices=sorted(CRITERIA), default=["vader", "length", "film"])
    arguments = parser.parse_args()
    start, model = time.perf_counter(), fetch_model()
    prompts, completions, train, test = draw(model, arguments.completions)
    last, _ = features(model, prompts, completions, "", None)
    asked, _ = features(model, prompts, completions, QUESTION, None)
    print(
        f"{len(prompts)} completions, {torch.get_num_threads()} threads, {time.perf_counter() - start:.0f} s\n"
    )
    for name in arguments.raters:
        scores = rater_scores(name, model, prompts, completions)
        direction = Criterion.parse(CRITERIA[name])
        scorer = Scorer.from_base(model, question=QUESTION)
        prior = criterion_direction(direction, model, scorer.model, scorer.tokenizer)
        candidates, tested = pairs_within(prompts, train, scores), pairs_within(prompts, test, scores)
        truth = np.sign(scores[tested[:, 0]] - scores[tested[:, 1]])
        ways: dict[str, Callable[[Pairs], np.ndarray]] = {
            "last": lambda pairs: fit_head(last, pairs).scores(last),
            "question": lambda pairs: fit_by_evidence(asked, pairs).scores(asked),
            "criterion": lambda pairs, prior=prior: fit_by_evidence(asked, pairs, prior).scores(asked),
        }
        print(f"rater {name}: {len(tested)} held-out pairs; accuracy (± deviation over seeds), nats per pair")
        print(f"| judgements | {' | '.join(ways)} |\n|---|{'---|' * len(ways)}")
        for count in arguments.judgements:
            cells = []
            for way, learn in ways.items():
                if count == 0 and way != "criterion":
                    cells.append("–")
                    continue
                found = []
                for seed in range(arguments.seeds if count else 1):
                    generator = np.random.default_rng(seed)
                    rows = candidates[generator.permutation(len(candidates))[:count]]
                    said = judge(name, rows, scores, generator)
                    learned = (
                        asked @ prior
                        if count == 0
                        else learn(Pairs(prompts, completions, rows[:, 0], rows[:, 1], said))
                    )
                    margins = learned[tested[:, 0]] - learned[tested[:, 1]]
                    found.append(
                        (np.mean((np.sign(margins) * truth + 1) / 2), np.mean(preference_nll(margins, truth)))
                    )
                accuracy, nll = np.mean(found, axis=0)
                cells.append(
                    f"{accuracy:.3f} ± {np.std([f[0] for f in found]):.3f}, "
                    + (f"{nll:.3f}" if count else "–")
                )
            print(f"| {count} | {' | '.join(cells)} |", flush=True)
        print()


if __name__ == "__main__":
    main()
