"""Secrets in options of a reward do not get into what is written of it."""

import json

import pytest

from klimb.config.reward import RewardConfig
from klimb.reward.learn.training import train_reward

SECRET = "hunter2"  # noqa: S105


@pytest.mark.usefixtures("drawn_figures")
def test_no_secret_of_an_address_is_in_a_learned_rewards_options(model_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("KLIMB_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "f.jsonl"
    rows = [{"prompt": f"p{n}", "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(20)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = RewardConfig(
        feedback=(str(file),),
        base=str(model_folder),
        out=tmp_path / "reward",
        question=f" http://ann:{SECRET}@host ",
    )
    train_reward(config)
    for name in ("reward.json", "report.html"):
        assert SECRET not in (config.out / name).read_text()
    assert "http://***@host" in (config.out / "reward.json").read_text()
