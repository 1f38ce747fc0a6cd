"""Learning from few pairs: the evidence, the average, the prior, and what is said of the result."""

import json

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from klimb import KlimbError
from klimb.cli.main import main
from klimb.config.criterion import QUESTION, Criterion
from klimb.core.preferences import preference_nll
from klimb.errors import ConfigError, DataError, RewardError
from klimb.feedback.pairs import Pairs
from klimb.reward.learn import evidence
from klimb.reward.learn.criterion import criterion_direction
from klimb.reward.learn.evaluation import evaluate
from klimb.reward.learn.evidence import cross_scores, fit_by_evidence
from klimb.reward.learn.verdict import pairs_needed, verdict
from klimb.reward.load import require_proven
from klimb.reward.scorer import Scorer


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KLIMB_CACHE", str(tmp_path / "cache"))


def judged(num_pairs, true_weights, num_features=6, seed=0, flipped=0.0):
    """Two texts a prompt, and which is preferred by a linear rule."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(2 * num_pairs, num_features))
    left, right = np.arange(0, 2 * num_pairs, 2), np.arange(1, 2 * num_pairs, 2)
    weights = np.zeros(num_features)
    weights[: len(true_weights)] = true_weights
    outcomes = np.sign((features[left] - features[right]) @ weights) if weights.any() else np.ones(num_pairs)
    if not weights.any():
        outcomes = generator.choice([-1.0, 1.0], size=num_pairs)
    outcomes *= np.where(generator.random(num_pairs) < flipped, -1, 1)
    prompts = [f"prompt {i // 2}" for i in range(2 * num_pairs)]
    return features, Pairs(prompts, [f"text {i}" for i in range(2 * num_pairs)], left, right, outcomes)


def test_the_average_is_that_of_numerical_integration(monkeypatch):
    # One feature and one ridge: the posterior of the one weight is an integral.
    features = np.array([[1.0], [0.0], [0.5], [0.0], [-0.2], [0.3], [2.0], [1.0]])
    pairs = Pairs(
        list("aabbccdd"), list("12345678"), np.arange(0, 8, 2), np.arange(1, 8, 2), np.array([1.0, 1, -1, 1])
    )
    spreads = (0.1, 0.5)
    monkeypatch.setattr(evidence, "_SPREADS", spreads)
    differences = (features[pairs.left] - features[pairs.right])[:, 0]
    length = np.sqrt(np.mean(differences**2))

    def mass(spread, moment):
        deviation = spread / length

        def density(w):
            nll = preference_nll(differences * w, pairs.outcomes).sum()
            return w**moment * np.exp(-nll - w * w / (2 * deviation**2)) / (deviation * np.sqrt(2 * np.pi))

        return quad(density, -12 * deviation, 12 * deviation)[0]

    before = np.array(spreads) ** -evidence._STIFFER  # how likely the settings were before the pairs
    evidences = before * [mass(spread, 0) for spread in spreads]
    expected = before @ [mass(spread, 1) for spread in spreads] / evidences.sum()
    head = fit_by_evidence(features, pairs)
    assert head.weights[0] == pytest.approx(expected, rel=0.02)
    assert head.spread == pytest.approx(evidences @ spreads / evidences.sum(), rel=0.01)


def test_of_twenty_pairs_a_plain_rule_is_learned():
    features, pairs = judged(20, [3.0, -2.0])
    head = fit_by_evidence(features, pairs)
    unseen, others = judged(400, [3.0, -2.0], seed=1)
    assert evaluate(head.scores(unseen), others).accuracy > 0.8


@pytest.mark.parametrize("seed", range(5))
def test_a_prior_that_is_right_is_never_lost(seed):
    prior = np.array([3.0, -2.0, 0, 0, 0, 0])
    unseen, others = judged(400, [3.0, -2.0], seed=100)
    for num_pairs in (3, 10, 60):
        features, pairs = judged(num_pairs, [3.0, -2.0], seed=seed)
        assert evaluate(fit_by_evidence(features, pairs, prior).scores(unseen), others).accuracy > 0.85


def test_a_prior_that_is_wrong_is_given_up():
    features, pairs = judged(120, [3.0, -2.0])
    head = fit_by_evidence(features, pairs, np.array([0, 0, 0, 0, 1.0, 0]))
    unseen, others = judged(400, [3.0, -2.0], seed=1)
    assert head.trust < head.spread / 4
    assert evaluate(head.scores(unseen), others).accuracy > 0.9


def test_neither_the_scale_of_features_nor_that_of_the_prior_matters():
    features, pairs = judged(30, [3.0, -2.0])
    prior = np.array([1.0, 0, 0, 0, 0, 0])
    head = fit_by_evidence(features, pairs, prior)
    scaled = fit_by_evidence(1000 * features, pairs, 7 * prior)
    np.testing.assert_allclose(scaled.scores(1000 * features), head.scores(features), rtol=1e-6)


def test_a_text_is_scored_by_what_other_prompts_teach():
    features, pairs = judged(40, [3.0])
    scores, tested = cross_scores(features, pairs, None, 0)
    assert len(tested) == 40  # the two texts of a pair answer one prompt
    changed = pairs.take(np.arange(40))
    changed.outcomes[:1] *= -1  # what is said of a prompt does not change its own texts' scores
    again, _ = cross_scores(features, changed, None, 0)
    np.testing.assert_array_equal(again[:2], scores[:2])
    assert not np.array_equal(again[2:], scores[2:])


def test_of_noise_a_crossed_test_finds_nothing():
    lows = []
    for seed in range(10):
        features, pairs = judged(60, [], num_features=20, seed=seed)
        scores, tested = cross_scores(features, pairs, None, seed)
        lows.append(evaluate(scores, tested).beats_chance)
    assert sum(lows) <= 1


@pytest.mark.parametrize(
    ("accuracy", "expected"), [(0.5, None), (0.4, None), (0.502, None), (0.6, 93), (0.75, 12), (1.0, 10)]
)
def test_how_many_pairs_show_an_accuracy(accuracy, expected):
    assert pairs_needed(accuracy) == expected


def test_the_verdict_says_what_to_do():
    features, pairs = judged(60, [3.0])
    scores, tested = cross_scores(features, pairs, None, 0)
    assert verdict(evaluate(scores, tested), is_crossed=True).startswith("It beats chance: ")
    _, noise = judged(60, [])
    said = verdict(evaluate(scores, noise), is_crossed=True)
    assert said.startswith("It does not beat chance: ")
    assert "Do not train on it." in said
    assert "Or raters answer at random" in said
    assert "at random" not in verdict(evaluate(scores, tested), is_crossed=True)
    assert "--criterion" in said
    assert "--criterion" not in verdict(evaluate(scores, noise), is_crossed=True, has_criterion=True)


def test_pairs_that_say_nothing_leave_the_prior():
    features, pairs = judged(4, [3.0])
    prior = np.array([1.0, 0, 0, 0, 0, 0])
    none = fit_by_evidence(features, pairs.take(np.arange(0)), prior)
    np.testing.assert_array_equal(none.weights, prior)
    alike = fit_by_evidence(np.ones_like(features), pairs, prior)  # the same text twice, in every pair
    assert np.isfinite(alike.weights).all()
    assert not alike.scores(features).any()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cheerful", "expected words for it and against it, such as .* got 'cheerful'"),
        ("a / ", "expected words for it"),
        ("a / b / c", "expected words for it"),
        ("good, kind / kind", "'kind' is on both sides"),
    ],
)
def test_a_criterion_of_another_form_is_refused(text, words):
    with pytest.raises(ConfigError, match=rf"criterion: .*{words}"):
        Criterion.parse(text)


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # whose token embeddings make no logits, and do
def test_the_criterions_direction_is_the_difference_of_the_models_own_logits(
    family, make_model, tokenizer, tmp_path
):
    model = make_model(family, vocab_size=len(tokenizer), spread=0.1).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    scorer = Scorer.from_base(tmp_path, question=QUESTION)
    direction = criterion_direction(Criterion(("yes",), ("No",)), tmp_path, scorer.model, scorer.tokenizer)
    text = scorer.encode("a prompt", " and more")
    found = scorer.features([text])[0] @ direction
    logits = model(torch.tensor([text])).logits[0, -1].detach()
    liked, disliked = (tokenizer.encode(word, add_special_tokens=False)[0] for word in ("y", "N"))
    assert found == pytest.approx(float(logits[liked] - logits[disliked]), abs=1e-4)


def test_a_criterion_is_where_a_reward_from_the_command_line_starts(tmp_path, model_folder, tokenizer):
    write_comparisons(tmp_path / "said.jsonl", 12, lambda i: ("left", "right")[i % 2])
    arguments = ["--feedback", str(tmp_path / "said.jsonl"), "--base", str(model_folder)]
    arguments += ["--out", str(tmp_path / "reward"), "--criterion", "yes / No", "--num-members", "2"]
    assert main(["reward", "train", *arguments]) in (0, 3)
    assert "criterion&#39;s own score" in (tmp_path / "reward" / "report.html").read_text()
    record = json.loads((tmp_path / "reward" / "reward.json").read_text())
    assert record["options"]["criterion"] == "yes / No"
    ids = Scorer.load(tmp_path / "reward").encode("a", "b")
    assert tokenizer.decode(ids).endswith(QUESTION)  # wherever it is used, the question is read


def write_comparisons(file, count, rule):
    rows = [
        {"prompt": f"p {i}", "left": f"left {i}", "right": f"right {i}", "preferred": rule(i)}
        for i in range(count)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_reward_of_noise_exits_with_its_own_code_and_is_not_trained_on(tmp_path, model_folder, capsys):
    write_comparisons(tmp_path / "said.jsonl", 40, lambda i: ("left", "right")[(i * i // 3) % 2])
    out = tmp_path / "reward"
    arguments = ["--feedback", str(tmp_path / "said.jsonl"), "--base", str(model_folder), "--out", str(out)]
    assert main(["reward", "train", *arguments]) == 3
    assert "It does not beat chance: " in capsys.readouterr().out
    record = json.loads((out / "reward.json").read_text())
    assert record["held_out"]["beats_chance"] is False
    assert record["held_out"]["num_pairs"] == 40  # all were tested on
    assert record["verdict"] in (out / "report.html").read_text().replace("&#39;", "'")
    with pytest.raises(RewardError, match=r"It does not beat chance.*--accept-unproven-reward"):
        require_proven([str(out), "vader"])
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    train = ["--model", str(model_folder), "--prompts", str(tmp_path / "prompts.jsonl"), "--reward", str(out)]
    train += [
        "--out",
        str(tmp_path / "run"),
        "--num-steps",
        "1",
        "--prompts-per-step",
        "2",
        "--max-new-tokens",
        "3",
    ]
    assert main(["train", *train]) == 2
    assert "It does not beat chance" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main(["train", *train, "--no-preflight", "--accept-unproven-reward"]) == 0


def test_a_criterion_of_many_pairs_is_refused(tmp_path, model_folder):
    write_comparisons(tmp_path / "said.jsonl", 501, lambda _: "left")
    arguments = ["--feedback", str(tmp_path / "said.jsonl"), "--base", str(model_folder)]
    arguments += ["--out", str(tmp_path / "reward"), "--criterion", "x / y"]
    assert main(["reward", "train", *arguments]) == 2


def test_what_is_all_about_one_prompt_is_refused(tmp_path, model_folder):
    from klimb.config.reward import RewardConfig
    from klimb.reward.learn.training import train_reward

    (tmp_path / "said.jsonl").write_text('{"prompt": "p", "left": "a", "right": "b", "preferred": "left"}\n')
    config = RewardConfig((str(tmp_path / "said.jsonl"),), str(model_folder), tmp_path / "reward")
    with pytest.raises(DataError, match="too little feedback: 1 pairs: all pairs have the same prompt"):
        train_reward(config)
    assert isinstance(DataError(""), KlimbError)
