"""Learning a reward: the head's optimum, its evaluation, and the folder that other tools open."""

import json
import re
import shutil
from datetime import datetime

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from klimb import KlimbError
from klimb.cli.main import main
from klimb.config.reward import RewardConfig
from klimb.core.preferences import preference_nll, preference_probabilities
from klimb.feedback.comparison import Comparison, Rating
from klimb.feedback.formats import Feedback
from klimb.feedback.pairs import Pairs, make_pairs
from klimb.model.clock import clock_at
from klimb.reward.learn.evaluation import evaluate
from klimb.reward.learn.head import fit_head
from klimb.reward.learn.training import train_reward
from klimb.reward.load import load_rewards
from klimb.reward.reward import Batch
from klimb.reward.scorer import Scorer


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KLIMB_CACHE", str(tmp_path / "cache"))


def simulated(num_texts, num_pairs, tie=0.0, num_features=4, seed=0):
    """Features, the head that judges them, and what people then say."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(num_texts, num_features)).astype(np.float32) * [1, 10, 0.1, 1]
    weights = np.array([1.0, 0.1, -5.0, 0.0])
    left, right = generator.integers(num_texts, size=(2, num_pairs))
    keep = left != right
    left, right = left[keep], right[keep]
    chances = preference_probabilities((features @ weights)[left] - (features @ weights)[right], tie)
    drawn = (generator.random(len(left))[:, None] > chances.cumsum(axis=1)).sum(axis=1)
    outcomes = np.array([1.0, -1.0, 0.0])[np.minimum(drawn, 2)]
    names = [f"text {index}" for index in range(num_texts)]
    return features, weights, Pairs([""] * num_texts, names, left, right, outcomes)


@pytest.mark.parametrize("tie", [0.0, 0.8])
def test_the_head_that_people_used_is_found(tie):
    features, weights, pairs = simulated(400, 20_000, tie)
    head = fit_head(features, pairs)
    np.testing.assert_allclose(head.weights * [1, 10, 0.1, 1], weights * [1, 10, 0.1, 1], atol=0.08)
    assert head.tie == pytest.approx(tie, abs=0.08)


def test_the_head_is_where_the_gradient_vanishes():
    features, _, pairs = simulated(60, 300, tie=0.5)
    head = fit_head(features, pairs, ridges=(2.0,))
    scale = features.std(axis=0)
    at = torch.tensor(head.weights * scale, requires_grad=True)
    scaled = torch.from_numpy((features / scale).astype(np.float64))
    margins = (scaled[pairs.left] - scaled[pairs.right]) @ at
    loss = preference_nll(margins, torch.from_numpy(pairs.outcomes), head.tie).sum() + at.square().sum()
    (gradient,) = torch.autograd.grad(loss, at)
    assert float(gradient.abs().max()) < 1e-3
    ties = preference_probabilities(margins.detach(), head.tie)[:, 2].sum()
    assert float(ties) == pytest.approx(float((pairs.outcomes == 0).sum()), rel=1e-3)


def test_where_features_say_nothing_the_ridge_is_stiff():
    _, _, pairs = simulated(100, 600)
    noise = np.random.default_rng(5).normal(size=(100, 30)).astype(np.float32)
    assert fit_head(noise, pairs).ridge >= 100


def test_an_evaluation_of_perfect_and_of_useless_scores():
    features, weights, pairs = simulated(200, 3000)
    ideal = evaluate(features @ weights, pairs)
    assert ideal.accuracy_low < ideal.accuracy < ideal.accuracy_high
    assert ideal.calibration_error < 0.03
    assert ideal.nll < np.log(2)
    useless = evaluate(np.random.default_rng(1).normal(size=200), pairs)
    assert useless.accuracy_low < 0.5 < useless.accuracy_high
    assert useless.nll > np.log(2)
    sure = evaluate(10 * (features @ weights), pairs)
    assert sure.accuracy == ideal.accuracy
    assert sure.calibration_error > 0.1


def test_a_coin_calls_ties_as_readily_as_people_do():
    features, weights, pairs = simulated(200, 4000, tie=3.0)
    found = evaluate(features @ weights, pairs, tie=3.0)
    num_ties = int((pairs.outcomes == 0).sum())
    assert found.num_clear == len(pairs) - num_ties
    # Of equal scores P(left) = P(right) = 1 / 5 and P(tie) = 3 / 5.
    coin = (found.num_clear * np.log(5) + num_ties * np.log(5 / 3)) / len(pairs)
    assert found.coin == pytest.approx(coin)
    assert evaluate(np.zeros(200), pairs, tie=3.0).nll == pytest.approx(coin)
    assert found.nll < coin
    assert evaluate(features @ weights, simulated(200, 400)[2]).coin == pytest.approx(np.log(2))


def test_a_few_held_out_pairs_prove_little():
    pairs = Pairs(
        ["a", "a", "b", "b"], ["1", "2", "3", "4"], np.array([0, 2]), np.array([1, 3]), np.array([1.0, 1.0])
    )
    found = evaluate(np.array([1.0, 0.0, 1.0, 0.0]), pairs)
    assert (found.accuracy, found.accuracy_high) == (1.0, 1.0)
    assert found.accuracy_low == pytest.approx(0.025**0.5)  # two prompts


def test_a_love_of_length_is_seen():
    texts = ["a" * length for length in range(1, 40)]
    ratings = [Rating("", text, float(len(text))) for text in texts]
    pairs = make_pairs(Feedback(ratings=ratings))
    found = evaluate(np.array([float(len(text)) for text in pairs.completions]), pairs)
    assert found.length_accuracy == 1.0
    assert found.length_correlation == pytest.approx(1.0)


def ratings_file(tmp_path, count=120):
    """Texts that are the better the more of the letter a they have."""
    generator = np.random.default_rng(0)
    rows = []
    for index in range(count):
        share = generator.random()
        text = f"{index} " + "".join("a" if generator.random() < share else "z" for _ in range(12))
        rows.append({"text": text, "score": text.count("a")})
    file = tmp_path / "ratings.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def make_config(tmp_path, base, **changes):
    return RewardConfig(
        **{"feedback": (str(ratings_file(tmp_path)),), "base": str(base), "out": tmp_path / "reward"}
        | changes
    )


def test_a_reward_is_learned_and_other_tools_open_it(tmp_path, model_folder):
    said = []
    config = make_config(
        tmp_path, model_folder, num_layers=1, question=" how much?", num_members=3, min_gap=1.0
    )
    result = train_reward(config, said.append)
    assert result.held_out.accuracy > 0.7
    assert [count for count, *_ in result.curve] == sorted(count for count, *_ in result.curve)
    assert any("ratings" in line for line in said)

    model = AutoModelForSequenceClassification.from_pretrained(config.out).eval()
    tokenizer = AutoTokenizer.from_pretrained(config.out)
    assert model.config.num_labels == 1
    assert model.config.num_hidden_layers == 1
    text = "7 aazz"
    ids = tokenizer(text, return_tensors="pt")
    assert tokenizer.decode(ids.input_ids[0]).endswith(" how much?")
    with torch.no_grad():
        expected = float(model(**ids).logits)
    rewards = load_rewards([str(config.out)])
    (found,) = rewards(Batch(["7 "], ["aazz"])).total
    assert found == pytest.approx(expected, rel=1e-5)

    card = ModelCard((config.out / "README.md").read_text())
    assert (card.data.pipeline_tag, card.data.library_name) == ("text-classification", "transformers")
    assert f"{result.held_out.accuracy:.1%}" in card.content
    assert str(config.out.parent) not in card.content

    page = (config.out / "report.html").read_text()
    assert re.search(r"Each point is [\d,]+( to [\d,]+)? held-out pairs, with its 95 % interval", page)
    assert f"{100 * result.held_out.accuracy:.1f} %" in page
    assert (
        json.loads((config.out / "reward.json").read_text())["held_out"]["accuracy"]
        == result.held_out.accuracy
    )


def test_caution_takes_the_ensembles_spread_off(tmp_path, model_folder):
    out = train_reward(make_config(tmp_path, model_folder, num_members=3)).folder
    batch = Batch(["", ""], ["aaa", "zzz"])
    scorer = Scorer.load(out)
    assert scorer.members.shape == (3, scorer.head.weight.shape[1])
    features = scorer.features([scorer.encode("", text) for text in batch.texts])
    scores = features.astype(np.float64) @ scorer.members.astype(np.float64).T
    assert (scores.std(axis=1) > 0).all()
    found = load_rewards([str(out)], uncertainty_penalty=2.0)(batch).total
    np.testing.assert_allclose(found, scores.mean(axis=1) - 2 * scores.std(axis=1), rtol=1e-6)


def test_caution_needs_an_ensemble(tmp_path, model_folder):
    out = train_reward(make_config(tmp_path, model_folder)).folder
    with pytest.raises(KlimbError, match="has no ensemble, so no disagreement to penalise"):
        load_rewards([str(out)], uncertainty_penalty=1.0)


def test_scores_are_the_same_to_the_bit_after_reloading(tmp_path, model_folder):
    config = make_config(tmp_path, model_folder)
    train_reward(config)
    scorers = [Scorer.load(config.out) for _ in range(2)]
    ids = [scorers[0].encode("", text) for text in ("one a", "two zz", "three aaa")]
    first, second = (scorer.scores(ids) for scorer in scorers)
    assert (first == second).all()
    assert len(set(first.tolist())) == 3


def test_features_are_those_that_the_head_sees(model_folder):
    scorer = Scorer.from_base(model_folder, question="?", device="cpu")
    ids = [scorer.encode("", text) for text in ("one", "a longer text", "b")]
    with torch.no_grad():
        scorer.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    features = scorer.features(ids)
    np.testing.assert_allclose(
        features @ scorer.head.weight.detach().numpy()[0], scorer.scores(ids), rtol=1e-5, atol=1e-6
    )


def test_features_are_computed_once(tmp_path, model_folder, monkeypatch):
    train_reward(make_config(tmp_path, model_folder))
    monkeypatch.setattr(Scorer, "features", lambda *_: pytest.fail("computed again"))
    train_reward(make_config(tmp_path, model_folder, out=tmp_path / "again", num_members=2))


def test_reading_texts_says_how_far_it_is_in_tokens(tmp_path, model_folder, monkeypatch):
    monkeypatch.setattr("klimb.io.progress.EVERY", 0.0)
    monkeypatch.setattr("klimb.reward.scorer._BATCH_TOKENS", 64)
    said = []
    train_reward(make_config(tmp_path, model_folder), said.append)
    (start,) = (line for line in said if line.startswith("Reading "))
    total = start.split()[3]  # Reading … texts, … tokens …
    done = [line for line in said if line.startswith("  reading: ")]
    assert len(done) > 3
    assert all(f" of {total} tokens (" in line and " tokens/s, about " in line for line in done)
    counts = [int(line.split()[1].replace(",", "")) for line in done]
    assert counts == sorted(set(counts))
    assert counts[-1] < int(total.replace(",", ""))
    assert counts[-1] > 0.9 * int(total.replace(",", ""))


def test_a_reward_keeps_the_time_of_its_training_in_its_chat_template(tmp_path, model_folder):
    base = tmp_path / "base"
    shutil.copytree(model_folder, base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y %H') }}" + tokenizer.chat_template
    tokenizer.save_pretrained(base)
    said, out = [], tmp_path / "reward"
    with clock_at(datetime(2026, 11, 26, 9, 8, 7)):
        train_reward(make_config(tmp_path, base, out=out), said.append)
    assert any(
        "the base's chat template writes the time: 2026-11-26 09:08:07 in this reward" in line
        for line in said
    )
    batch = Batch([[{"role": "user", "content": "good?"}]], ["yes"])
    with clock_at(datetime(2031, 1, 2, 3, 4, 5)):
        (ours,) = load_rewards([str(out)])(batch).total
    tokenizer = AutoTokenizer.from_pretrained(out)
    chat = tokenizer.apply_chat_template(
        [*batch.prompts[0], {"role": "assistant", "content": "yes"}], tokenize=False
    )
    assert chat.startswith("26 Nov 2026 09")
    model = AutoModelForSequenceClassification.from_pretrained(out)
    with torch.no_grad():
        theirs = model(**tokenizer(chat, add_special_tokens=False, return_tensors="pt")).logits[0, 0]
    assert ours == pytest.approx(float(theirs), abs=1e-4)


def test_comparisons_with_ties_and_chat_prompts(tmp_path, model_folder):
    rows = []
    for index in range(60):
        prompt = [{"role": "user", "content": f"question {index}"}]
        tie = index % 5 == 0
        rows.append({"prompt": prompt, "left": "aaa" if index % 2 else "zzz", "right": "zzz" if index % 2 else "aaa",
                     "preferred": "tie" if tie else "left" if index % 2 else "right"})  # fmt: skip
    file = tmp_path / "said.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = train_reward(make_config(tmp_path, model_folder, feedback=(str(file),)))
    assert result.has_prompts
    assert result.tie > 0
    assert result.held_out.accuracy == 1.0


def test_ties_alone_are_too_little(tmp_path, model_folder):
    rows = [{"prompt": f"p {i}", "left": "a", "right": "b", "preferred": "tie"} for i in range(20)]
    (tmp_path / "said.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(KlimbError, match=r"said\.jsonl: too little feedback: .*every pair is a tie"):
        train_reward(make_config(tmp_path, model_folder, feedback=(str(tmp_path / "said.jsonl"),)))


def test_from_the_command_line(tmp_path, model_folder, capsys):
    file, out = ratings_file(tmp_path), tmp_path / "reward"
    assert (
        main(["reward", "train", "--feedback", str(file), "--base", str(model_folder), "--out", str(out)])
        == 0
    )
    shown = capsys.readouterr().out
    assert "120 rows read: 120 ratings" in shown
    assert "pairwise accuracy" in shown
    scored = tmp_path / "scored.jsonl"
    assert main(["reward", "score", str(file), "--reward", str(out), "-o", str(scored)]) == 0
    rows = [json.loads(line) for line in scored.read_text().splitlines()]
    assert len(rows) == 120
    assert (
        np.corrcoef([row["score"] for row in rows], [row["completion"].count("a") for row in rows])[0, 1]
        > 0.5
    )
    assert (
        main(["reward", "train", "--feedback", str(file), "--base", str(model_folder), "--out", str(out)])
        == 2
    )
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"held_out": 1.5}, "held_out: expected a share between 0 and 1"),
        ({"num_members": 0}, "num_members: expected at least 1"),
        ({"feedback": ()}, "feedback: expected at least one file"),
        ({"num_layers": 9}, "num_layers: expected some of the model's first layers, got 9"),
        ({"base": "nowhere"}, "nowhere: no such folder"),
        ({"min_gap": 1e6}, "too little feedback: no two texts make a pair"),
    ],
)
def test_bad_input_is_named(tmp_path, model_folder, changes, message):
    with pytest.raises(KlimbError, match=message):
        train_reward(
            make_config(
                tmp_path,
                changes.get("base", model_folder),
                **{k: v for k, v in changes.items() if k != "base"},
            )
        )
    assert not (tmp_path / "reward").exists()


def test_comparisons_pick_the_preferred_side():
    pairs = make_pairs(Feedback([Comparison("p", "a", "b", "right")]))
    assert pairs.outcomes.tolist() == [-1.0]
