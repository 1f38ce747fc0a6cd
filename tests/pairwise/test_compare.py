"""`klimb compare`, by rewards: the numbers, the page and the file, and what is refused."""

import io
import json
import re
import shutil

import pytest
import torch
from rich.console import Console

from klimb import KlimbError
from klimb.config.pairwise import CompareConfig
from klimb.pairwise.compare import compare
from klimb.pairwise.console import show_comparison

JUDGES = """
def longer(completions, **_):
    return [float(len(c)) for c in completions]
def shorter(completions, **_):
    return [-float(len(c)) for c in completions]
def shy(completions, prompts, **_):
    return [None if p == "x" else float(len(c)) for p, c in zip(prompts, completions)]
def silent(completions, **_):
    return [None] * len(completions)
def columns(completions, wanted, **_):
    return [float(c.count(w)) for c, w in zip(completions, wanted)]
"""


@pytest.fixture
def judge_file(tmp_path):
    path = tmp_path / "judge.py"
    path.write_text(JUDGES)
    return path


@pytest.fixture
def make_config(model_folder, other_folder, prompts_file, judge_file, tmp_path):
    def make(*judges, **changes):
        options = {
            "model_a": str(model_folder),
            "model_b": str(other_folder),
            "prompts": prompts_file,
            "by": tuple(f"{judge_file}:{name}" for name in judges),
            "completions_per_prompt": 3,
            "max_new_tokens": 5,
            "out": tmp_path / "out" / "compare.html",
        }
        return CompareConfig(**(options | changes))

    return make


def read(result):
    return json.loads(result.data.read_text())


def quiet(_line):
    pass


def test_the_rate_is_that_of_the_texts_it_wrote_down(make_config):
    result = compare(make_config("longer"), quiet)
    content = read(result)
    pairs = [(len(row["a"]), len(row["b"])) for row in content["comparisons"]]
    wins, losses = (sum(a > b for a, b in pairs), sum(a < b for a, b in pairs))
    ties = len(pairs) - wins - losses
    (judged,) = content["judges"]
    assert len(pairs) == judged["num_comparisons"] == 18
    assert (judged["wins_a"], judged["wins_b"], judged["ties"]) == (wins, losses, ties)
    assert wins
    assert losses
    assert judged["win_rate"] == pytest.approx((wins + ties / 2) / 18)
    assert judged["low"] < judged["win_rate"] < judged["high"]
    assert content["a"]["mean_characters"] == pytest.approx(sum(a for a, _ in pairs) / 18)


def test_several_rewards_judge_each_for_itself(make_config):
    longer, shorter = compare(make_config("longer", "shorter"), quiet).tallies
    assert longer.win_rate == pytest.approx(1 - shorter.win_rate)
    assert longer.longer_wins != shorter.longer_wins


def test_exchanging_the_models_exchanges_the_result(make_config):
    config = make_config("longer")
    (one,) = compare(config, quiet).tallies
    exchanged = make_config("longer", model_a=config.model_b, model_b=config.model_a)
    (other,) = compare(exchanged, quiet).tallies
    assert other.win_rate == pytest.approx(1 - one.win_rate)
    assert (other.wins_a, other.wins_b) == (one.wins_b, one.wins_a)


def test_the_same_command_writes_the_same_bytes(make_config):
    result = compare(make_config("longer"), quiet)
    before = result.page.read_bytes(), result.data.read_bytes()
    again = compare(make_config("longer"), quiet)
    assert (again.page.read_bytes(), again.data.read_bytes()) == before


def test_models_that_are_alike_tie_and_cannot_be_told_apart(make_config, model_folder, tmp_path):
    twin = shutil.copytree(model_folder, tmp_path / "twin")
    result = compare(make_config("longer", model_b=str(twin)), quiet)
    (judged,) = result.tallies
    assert (judged.ties, judged.win_rate, result.num_same) == (18, 0.5, 18)
    assert result.verdicts[0].endswith(f"this cannot tell {result.a.name} and {result.b.name} apart")


def test_a_margin_makes_ties(make_config):
    (judged,) = compare(make_config("longer", tie_margin=100.0), quiet).tallies
    assert (judged.ties, judged.wins_a) == (18, 0)


def test_what_a_reward_has_no_opinion_on_is_left_out(make_config):
    (judged,) = compare(make_config("shy"), quiet).tallies
    assert (judged.num_comparisons, judged.num_left_out, judged.num_prompts) == (15, 3, 5)


def test_a_reward_without_any_opinion_tells_nothing(make_config):
    config = make_config("silent")
    with pytest.raises(KlimbError, match=r"nothing was judged.*no reward had an opinion"):
        compare(config, quiet)
    assert not config.out.exists()
    tallies = compare(make_config("silent", "longer"), quiet).tallies
    assert [judged.num_comparisons for judged in tallies] == [0, 18]


def test_the_columns_of_the_prompts_go_to_the_reward(make_config, monkeypatch):
    whole = read(compare(make_config("columns"), quiet))["judges"]
    monkeypatch.setattr("klimb.pairwise.compare._AT_ONCE", 4)
    assert read(compare(make_config("columns"), quiet))["judges"] == whole
    assert whole[0]["num_comparisons"] == 18


def test_a_run_may_be_compared_with_what_it_began_as(make_config, run_folder, other_folder):
    result = compare(make_config("longer", model_a=str(run_folder), model_b=str(other_folder)), quiet)
    assert (result.a.name, result.a.model) == ("x", str(run_folder))


def test_models_of_the_same_last_name_keep_their_paths(make_config, model_folder, other_folder, tmp_path):
    a = shutil.copytree(model_folder, tmp_path / "one" / "model")
    b = shutil.copytree(other_folder, tmp_path / "two" / "model")
    result = compare(make_config("longer", model_a=str(a), model_b=str(b)), quiet)
    assert (result.a.name, result.b.name) == (str(a), str(b))


def test_the_page_needs_nothing_else_and_shows_texts_as_texts(make_config, write_jsonl):
    prompts = write_jsonl([{"prompt": "<script>alert(1)</script>"}, {"prompt": "two"}], "evil.jsonl")
    result = compare(make_config("longer", "shorter", prompts=prompts), quiet)
    page = result.page.read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert not re.search(r"(src|href)=.?(http|//)", page)
    for verdict in result.verdicts:
        assert f"{verdict}." in page
    assert "Side by side" in page


def test_the_terminal_shows_the_table_and_the_verdict(make_config):
    result = compare(make_config("longer"), quiet)
    screen = io.StringIO()
    show_comparison(result, Console(file=screen, width=200))
    shown = screen.getvalue()
    for words in (
        "win rate of A",
        "95 % interval",
        "the longer wins",
        "tokens",
        "compare.html",
        *result.verdicts,
    ):
        assert words in shown
    assert "both bad" not in shown


def test_empty_completions_are_judged_and_counted(make_config, make_model, tokenizer, tmp_path):
    model, end = make_model("llama", vocab_size=len(tokenizer)), tokenizer.eos_token_id
    with torch.no_grad():  # every token is read alike, and is followed by the end
        model.model.embed_tokens.weight[:] = 1.0
        hidden = model.model(torch.tensor([[1, 2]])).last_hidden_state[0, -1]
        model.lm_head.weight.zero_()
        model.lm_head.weight[end] = 50 * hidden / hidden.square().sum()
    model.save_pretrained(tmp_path / "mute")
    tokenizer.save_pretrained(tmp_path / "mute")
    result = compare(make_config("longer", model_b=str(tmp_path / "mute")), quiet)
    assert (result.b.mean_tokens, result.b.mean_characters, result.b.num_empty) == (1, 0, 18)
    assert "(empty)" in result.page.read_text()
    assert result.verdicts[0].endswith("better than chance")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_a": "./nowhere"}, "nowhere: no such folder or file"),
        ({"by": ("nonsense",)}, "reward nonsense: unknown"),
        ({"prompt_column": "question"}, r"prompts\.jsonl:1: no column 'question'"),
    ],
)
def test_what_is_wrong_is_found_before_anything_is_sampled(make_config, changes, message):
    said = []
    with pytest.raises(KlimbError, match=message):
        compare(make_config("longer", **changes), said.append)
    assert said == []


def test_a_model_compared_with_itself_is_refused(make_config, model_folder):
    with pytest.raises(KlimbError, match="are the same model"):
        compare(make_config("longer", model_b=f"{model_folder}/."), quiet)
