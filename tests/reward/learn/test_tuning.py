"""Learning a reward by gradient: the objective, its gradient, what moves, and what is saved."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel

from klimb import KlimbError
from klimb.cli.main import main
from klimb.config.reward import RewardConfig
from klimb.core.preferences import preference_nll
from klimb.errors import DivergedError
from klimb.feedback.pairs import Pairs
from klimb.reward.learn.evaluation import evaluate
from klimb.reward.learn.training import train_reward
from klimb.reward.learn.tuning import Tuner, lr_share, preference_loss, split_for_choice, tune
from klimb.reward.scorer import Scorer

TEXTS = ["a", "bb", "a b c", "dddddd", "ee e"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KLIMB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def make_base(make_model, tokenizer, tmp_path):
    """Save a tiny random model of a family, decoder or encoder, with dropout in its configuration."""

    def make(family):
        folder = tmp_path / family
        if family == "bert":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = BertModel(BertConfig(vocab_size=261, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
                                             intermediate_size=24, max_position_embeddings=64))  # fmt: skip
        else:
            model = make_model(family, spread=0.1)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


def make_config(method="lora", **changes):
    usual = {"feedback": ("said.jsonl",), "base": "base", "out": Path("out"), "method": method}
    return RewardConfig(**usual | changes)


def few_pairs(*, has_ties=True):
    """Five texts in six pairs: each stands in several."""
    outcomes = np.array([1.0, -1.0, 1.0, 0.0 if has_ties else 1.0, -1.0, 1.0])
    return Pairs([""] * 5, TEXTS, np.array([0, 0, 1, 2, 3, 4]), np.array([1, 2, 2, 3, 4, 0]), outcomes)


def make_scorer(base, *, spread=0.5):
    """A scorer in float64 whose head is not 0."""
    scorer = Scorer.from_base(base)
    scorer.model.double()
    size = scorer.head.weight.shape[1]
    scorer.set_head(np.random.default_rng(0).normal(size=size) * spread)
    return scorer, [scorer.encode("", text) for text in TEXTS]


def rated(tmp_path, count=400):
    """Texts of six letters out of 32, and the number of good ones among them; which are good is drawn."""
    generator = np.random.default_rng(0)
    letters = [chr(code) for code in range(48, 80)]
    is_good = generator.permutation(32) < 16
    drawn = generator.integers(32, size=(count, 6))
    rows = [
        {"text": "".join(letters[index] for index in text), "score": int(is_good[text].sum())}
        for text in drawn
    ]
    file = tmp_path / "ratings.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize(
    ("method", "lr", "num_epochs"),
    [
        pytest.param("lora", 5e-3, 3, marks=pytest.mark.slow),
        pytest.param("full", 1e-2, 2, marks=pytest.mark.slow),
    ],
)
def test_a_rule_is_learned_that_no_head_on_frozen_features_finds(
    tmp_path, model_folder, method, lr, num_epochs
):
    # A head weighs 16 features, and any half of 32 letters cannot be told from the other by so few.
    file = rated(tmp_path)
    said = []
    config = make_config(method, feedback=(str(file),), base=str(model_folder), out=tmp_path / "reward", lr=lr,
                         pairs_per_text=6, min_gap=1.0, num_epochs=num_epochs)  # fmt: skip
    result = train_reward(config, said.append)
    assert result.before.accuracy < 0.7
    assert result.held_out.accuracy > 0.9
    assert result.tuning.chosen.number > 0
    assert sum(line.startswith("epoch 1, step ") for line in said) >= 5
    base = Scorer.from_base(model_folder, device="cpu").model.state_dict()
    learned = load_file(config.out / "model.safetensors")
    moved = [name for name in learned if not torch.equal(learned[name], base[name])]
    assert any("layers.0" in name and "up_proj" in name for name in moved)
    assert any("embed_tokens" in name for name in moved) == (method == "full")

    page = (config.out / "report.html").read_text()
    assert ("a low-rank adapter of rank 16" in page) == (method == "lora")
    assert f"lr {lr:g} after a linear warm-up over 10 % of the steps" in page
    assert "of the same pairs is what the linear head on frozen features reached" in page
    assert "Judgements needed" not in page
    numbers = json.loads((config.out / "reward.json").read_text())
    assert [epoch["number"] for epoch in numbers["tuning"]["epochs"]] == list(range(num_epochs + 1))
    assert numbers["before"]["accuracy"] == result.before.accuracy


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_gradient_is_that_of_the_mean_over_pairs_however_the_texts_are_split(make_base, method):
    pairs = few_pairs()
    found = []
    for size in (None, 1, 2, 3, 100):
        scorer, ids = make_scorer(make_base("llama"))
        config = make_config(method, micro_batch_size=size, **({"lora_rank": 2} if method == "lora" else {}))
        tuner = Tuner(scorer, 0.7, config, 10)
        loss = tuner.add_gradient(ids, pairs)
        found.append((loss, [weight.grad for weight in tuner.weights], tuner.log_tie.grad))

    scorer, ids = make_scorer(make_base("llama"))
    tuner = Tuner(scorer, 0.7, make_config(method, **({"lora_rank": 2} if method == "lora" else {})), 10)
    device = scorer.model.device
    scores = torch.cat(
        [scorer.model(input_ids=torch.tensor([row], device=device)).logits[:, 0] for row in ids]
    )
    margins = scores[pairs.left] - scores[pairs.right]
    expected = preference_nll(margins, torch.from_numpy(pairs.outcomes).to(device), 0.7).sum() / 6
    gradients = torch.autograd.grad(expected, tuner.weights, allow_unused=True)
    assert sum(gradient is not None and bool(gradient.any()) for gradient in gradients) > 10
    for loss, by_weight, to_tie in found:
        assert loss == pytest.approx(float(expected.detach()), rel=1e-12)
        torch.testing.assert_close(to_tie, found[0][2], rtol=1e-12, atol=0)
        for gradient, wanted in zip(by_weight, gradients, strict=True):
            torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-12)


def test_the_gradient_in_the_head_and_in_the_ties_is_that_of_finite_differences(make_base):
    scorer, ids = make_scorer(make_base("llama"))
    pairs = few_pairs()
    tuner = Tuner(scorer, 0.7, make_config("full"), 10)
    tuner.add_gradient(ids, pairs)
    moved = [(values, values.grad.clone().reshape(-1)) for values in (scorer.head.weight, tuner.log_tie)]
    for values, gradient in moved:
        assert bool((gradient != 0).any())
        flat = values.data.reshape(-1)
        for index in range(min(5, len(flat))):
            ends = []
            for change in (1e-5, -2e-5):
                flat[index] += change
                ends.append(tuner.add_gradient(ids, pairs))
            flat[index] += 1e-5
            assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(float(gradient[index]), rel=1e-6, abs=1e-9)


def test_the_mean_is_over_the_pairs_of_the_whole_batch():
    scores = torch.tensor([0.5, -1.0, 2.0, 0.0, 0.3], dtype=torch.float64)
    pairs, log_tie = few_pairs(), torch.tensor(-0.2, dtype=torch.float64)
    whole = preference_loss(scores, pairs, log_tie, num_pairs=6)
    rows = np.arange(6)
    parts = [preference_loss(scores, pairs.take(part), log_tie, num_pairs=6) for part in (rows[:2], rows[2:])]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-14, atol=0)


def test_a_text_is_read_once_though_it_stands_in_several_pairs(make_base):
    scorer, ids = make_scorer(make_base("llama"))
    read = []
    scorer.model.register_forward_pre_hook(
        lambda _module, _args, inputs: read.append(len(inputs["input_ids"])), with_kwargs=True
    )
    Tuner(scorer, 0.0, make_config("full"), 10).add_gradient(ids, few_pairs(has_ties=False))
    assert sum(read) == len(TEXTS)


def test_an_adapter_leaves_the_backbone_without_a_gradient(make_base):
    scorer, ids = make_scorer(make_base("llama"))
    tuner = Tuner(scorer, 0.0, make_config("lora", lora_rank=2), 10)
    tuner.add_gradient(ids, few_pairs(has_ties=False))
    names = {name for name, weight in scorer.model.named_parameters() if weight.grad is not None}
    assert names == {name for name in names if "lora_" in name or "score" in name}
    assert any("layers.0" in name for name in names)
    assert tuner.num_weights < sum(weight.numel() for weight in scorer.model.parameters()) / 2


def test_the_learning_rate_rises_and_falls_in_straight_lines():
    # Ten steps, the first two of warm-up: 1/2, 2/2, then from 8/8 down to 1/8.
    expected = [1 / 2, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    assert [lr_share(step, 10, 0.2) for step in range(10)] == expected
    assert [lr_share(step, 2, 0.0) for step in range(2)] == [1, 1 / 2]
    assert [lr_share(step, 2, 1.0) for step in range(2)] == [1 / 2, 1]
    assert lr_share(0, 1, 0.1) == 1


def test_ties_are_learned(make_base):
    # The head is 0 and so is every margin; a third of the pairs is tied: ν / (2 + ν) = 1/3 gives ν = 1.
    scorer, ids = make_scorer(make_base("llama"), spread=0.0)
    pairs = few_pairs().take(np.array([0, 3, 4]))
    tuner = Tuner(scorer, 1.3, make_config("full", lr=1e-9), 80)
    for _ in range(80):
        tuner.step(ids, pairs)
    assert tuner.tie == pytest.approx(1.0, abs=0.05)
    assert Tuner(scorer, 0.0, make_config("full"), 1).tie == 0.0


@pytest.mark.parametrize(
    ("family", "method"),
    [("llama", "lora"), ("llama", "full"), ("gpt2", "lora"), ("bert", "lora"), ("bert", "full")],
)
def test_what_is_saved_scores_the_same_to_the_bit_and_needs_no_peft(tmp_path, make_base, family, method):
    base = make_base(family)
    scorer = Scorer.from_base(base)
    ids = [scorer.encode("", text) for text in TEXTS]
    before = scorer.scores(ids)
    tuner = Tuner(scorer, 0.0, make_config(method, lr=1e-2), 4)
    for _ in range(4):
        tuner.step(ids, few_pairs(has_ties=False))
    tuner.remember()
    unmerged = scorer.scores(ids)
    tuner.finish()
    scores = scorer.scores(ids)
    assert (scores != before).all()
    np.testing.assert_allclose(scores, unmerged, rtol=1e-4, atol=1e-5)

    scorer.save(tmp_path / "saved")
    assert (Scorer.load(tmp_path / "saved").scores(ids) == scores).all()
    assert not list((tmp_path / "saved").glob("adapter*"))
    model, loading = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "saved", output_loading_info=True
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    with torch.no_grad():
        alone = [float(model.eval()(input_ids=torch.tensor([row])).logits) for row in ids]
    np.testing.assert_allclose(alone, scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [pytest.param("lora", marks=pytest.mark.slow), "full"])
def test_a_run_repeats_to_the_bit_and_another_seed_learns_otherwise(tmp_path, model_folder, method):
    file = rated(tmp_path, count=60)
    weights = {}
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        config = make_config(method, feedback=(str(file),), base=str(model_folder), out=tmp_path / name, lr=1e-3,
                             pairs_per_text=2, batch_size=16, seed=seed)  # fmt: skip
        torch.rand(len(name))  # the global generator stands somewhere else
        train_reward(config)
        weights[name] = (config.out / "model.safetensors").read_bytes()
    assert weights["first"] == weights["again"]
    assert weights["first"] != weights["other"]


def test_the_best_epoch_is_kept_by_prompts_that_are_not_learned_from(model_folder):
    scorer = Scorer.from_base(model_folder)
    generator = np.random.default_rng(0)
    texts = ["".join(generator.choice(["a", "z"], size=12)) for _ in range(60)]
    left, right = generator.integers(60, size=(2, 200))
    pairs = Pairs([""] * 60, texts, left, right, generator.choice([-1.0, 1.0], size=200))
    pairs = pairs.take(left != right)
    ids = [scorer.encode("", text) for text in texts]
    config = make_config(
        "full", lr=1e-2, num_epochs=3
    )  # what there is to learn is chance: each pass makes it worse
    tuning = tune(scorer, ids, scorer.features(ids), pairs, config)
    losses = [epoch.nll for epoch in tuning.epochs]
    assert tuning.chosen == tuning.epochs[int(np.argmin(losses))]
    assert losses[-1] > min(losses)
    _, kept = split_for_choice(pairs, config.seed)
    assert evaluate(scorer.scores(ids), kept).nll == pytest.approx(tuning.chosen.nll, rel=1e-5)


def test_no_prompt_is_both_learned_from_and_chosen_by():
    prompts = [f"prompt {index // 4}" for index in range(80)]
    left = np.arange(0, 80, 2)
    pairs = Pairs(prompts, [str(index) for index in range(80)], left, left + 1, np.ones(40))
    learned, kept = split_for_choice(pairs, 3)
    sides = [{prompts[index] for index in part.left} for part in (learned, kept)]
    assert not sides[0] & sides[1]
    assert len(sides[1]) == 2  # a tenth of twenty
    assert len(learned) + len(kept) == 40
    assert {prompts[index] for index in split_for_choice(pairs, 4)[1].left} != sides[1]


def test_a_text_without_a_prompt_that_chooses_is_in_no_pair_that_is_learned_from():
    left, right = np.triu_indices(30, k=1)
    texts = [str(index) for index in range(30)]
    learned, kept = split_for_choice(Pairs([""] * 30, texts, left, right, np.ones(len(left))), 0)
    assert len(set(learned.left) | set(learned.right)) == 27  # all but a tenth
    assert len(learned) == 27 * 26 / 2
    assert len(learned) + len(kept) == len(left)


def test_too_few_prompts_to_keep_some_for_choosing_are_refused():
    with pytest.raises(KlimbError, match="too little feedback for methods lora and full: of 2 prompts"):
        split_for_choice(Pairs(["", ""], ["a", "b"], np.array([0]), np.array([1]), np.ones(1)), 0)


def test_weights_that_leave_the_finite_numbers_are_told_of(model_folder):
    scorer = Scorer.from_base(model_folder)
    ids = [scorer.encode("", text) for text in TEXTS]
    tuner = Tuner(scorer, 0.0, make_config("full", lr=1e30), 20)

    def go():
        for _ in range(20):
            tuner.step(ids, few_pairs(has_ties=False))

    with pytest.raises(
        DivergedError, match=r"is not finite after \d+ steps: nothing was written; try a lower --lr"
    ):
        go()


def test_ties_and_chat_prompts_from_the_command_line(tmp_path, model_folder, write_jsonl, capsys):
    rows = []
    for index in range(80):
        prompt = [{"role": "user", "content": f"question {index}"}]
        good, bad = ("left", "right") if index % 2 else ("right", "left")
        rows.append(
            {"prompt": prompt, good: "aaa", bad: "zzz", "preferred": "tie" if index % 5 == 0 else good}
        )
    file = write_jsonl(rows, "said.jsonl")
    arguments = ["reward", "train", "--feedback", str(file), "--base", str(model_folder), "--out"]
    out = tmp_path / "reward"
    options = ["--method", "lora", "--lora-rank", "4", "--batch-size", "8", "--micro-batch-size", "5"]
    assert main([*arguments, str(out), *options]) == 0
    shown = capsys.readouterr().out
    assert "epoch 0, the linear head: pairwise accuracy 1.000" in shown
    assert "the linear head at the start" in shown
    numbers = json.loads((out / "reward.json").read_text())
    assert numbers["tie"] > 0
    assert numbers["held_out"]["accuracy"] == 1.0
    assert main([*arguments, str(tmp_path / "other"), "--lora-rank", "4"]) == 2
    assert "lora_rank: not used with method head" in capsys.readouterr().err


def test_a_text_that_is_too_long_and_a_pair_of_the_same_text_are_named(tmp_path, model_folder, write_jsonl):
    row = {"prompt": "p", "chosen": "good", "rejected": "bad"}
    rows = [row | {"prompt": f"p {index}"} for index in range(30)]
    long = write_jsonl([*rows, row | {"chosen": "a" * 70}], "long.jsonl")
    config = {"base": str(model_folder), "out": tmp_path / "reward", "question": ""}
    said = []
    train_reward(
        make_config("head", feedback=(str(long),), **config | {"out": tmp_path / "others"}), said.append
    )
    (line,) = [line for line in said if "refused" in line and "tokens" in line]
    assert f"{long}:31: " in line
    assert "prompt and completion have 71 tokens and it reads at most 64" in line
    assert "1 judgements refused, whose texts cannot be read; --truncate left (or right)" in "\n".join(said)
    same = write_jsonl([row | {"chosen": "bad"}], "same.jsonl")
    with pytest.raises(KlimbError, match="the two completions are the same: 'bad'"):
        train_reward(make_config(feedback=(str(same),), **config))
    assert not (tmp_path / "reward").exists()


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("head", {"lora_rank": 4}, "lora_rank: not used with method head"),
        ("head", {"lr": 1e-4}, "lr: not used with method head"),
        ("head", {"num_epochs": 2}, "num_epochs: not used with method head"),
        ("head", {"micro_batch_size": 2}, "micro_batch_size: not used with method head"),
        ("full", {"lora_rank": 4}, "lora_rank: not used with method full"),
        ("full", {"num_members": 2}, "num_members: an ensemble needs method head"),
        ("lora", {"num_members": 2}, "with method lora expected 1, got 2"),
        ("lora", {"num_epochs": 0}, "num_epochs: expected at least 1, got 0"),
        ("lora", {"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ("lora", {"lora_rank": 0}, "lora_rank: expected at least 1, got 0"),
        ("lora", {"micro_batch_size": 0}, "micro_batch_size: expected at least 1, got 0"),
        ("lora", {"lr": 0.0}, "lr: expected a finite number above 0, got 0"),
        ("lora", {"max_grad_norm": float("nan")}, "max_grad_norm: expected a finite number above 0, got nan"),
        ("lora", {"warmup_share": 1.5}, "warmup_share: expected a share from 0 to 1, got 1.5"),
        ("lora", {"seed": -1}, "seed: expected a number from 0 up to below 2\\^64, got -1"),
    ],
)
def test_options_that_make_no_sense_are_named(method, changes, message):
    with pytest.raises(KlimbError, match=message):
        make_config(method, **changes)


def test_the_usual_learning_rate_depends_on_the_method():
    assert (make_config("lora").used_lr, make_config("full").used_lr) == (1e-4, 1e-5)
    assert make_config("lora", lr=3e-3).used_lr == 3e-3
