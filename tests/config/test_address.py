"""Rewards that are named by an address: what may not stand in one."""

from pathlib import Path

import pytest

from klimb.config.address import refuse_secrets
from klimb.config.train import TrainConfig
from klimb.errors import ConfigError
from klimb.reward.load import load_rewards


def test_addresses_without_secrets_and_other_names_are_fine():
    refuse_secrets(["vader", "judge.py:f", "owner/model", "https://host:5000/score?model=small&n=2"])


@pytest.mark.parametrize(
    "url",
    [
        "http://me:hush@host/score",
        "https://hush@host/score",
        "https://host/score?token=hush",
        "https://host/score?model=a&API_KEY=hush",
        "https://host/score?x-amz-signature=hush#top",
        "https://host/score#access_token=hush",
        "ftp://me:hush@host/score",
        "HTTPS://me:hush@host/score",
    ],
)
def test_an_address_with_a_secret_is_refused_and_not_repeated(url):
    paths = {"model": "m", "prompts": Path("p"), "out": Path("o")}
    for refuse in (
        lambda: load_rewards([url]),
        lambda: load_rewards(["vader"], judges=[url]),
        lambda: load_rewards([url, url]),
        lambda: refuse_secrets(["vader", url]),
        lambda: TrainConfig(**paths, reward=(url,)),
        lambda: TrainConfig(**paths, reward=("vader",), judges=(url,), keep_best="x"),
    ):
        with pytest.raises(ConfigError, match=r"take it out.* KLIMB_REWARD_TOKEN") as caught:
            refuse()
        assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://", "http://host:x/", "http://host:99999/", "ftp://host/", "http://hé/", "http://host/a b"]
)
def test_what_is_no_address_is_refused(url):
    with pytest.raises(ConfigError, match="not an address"):
        load_rewards([url])
