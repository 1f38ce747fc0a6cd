"""People as the reward of a run: where what they say is kept, that no other run asks them, and how it ends for them."""

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from klimb.config.train import TrainConfig
from klimb.errors import ConfigError
from klimb.io.progress import Say
from klimb.reward.people import People, PeopleReward
from klimb.reward.reward import AsksPeople, WeightedSum
from klimb.training.signals import Interruption

_STORE = "people.db"  # in the run's folder


def store_of(config: TrainConfig) -> Path:
    """Where a run keeps what people say."""
    return config.out / _STORE


def ask_people(config: TrainConfig, say: Say) -> PeopleReward:
    """Make people the reward of a run, whose page has an address that can be listened on."""
    people = People(store_of(config), config.people_page, say, num_pairs=config.people_pairs)
    reward = PeopleReward(people)
    reward.check()
    return reward


def join_people(config: TrainConfig, reward: WeightedSum, say: Say) -> None:
    """Let a learned reward and people work together: it says what to ask, and learns from what they say.

    Args:
        config: The options.
        reward: The rewards of the run, of which the learned one may be replaced by one that learns.
        say: Is told when it has learned.

    Raises:
        ConfigError: There is no such reward, or there are two.
    """
    if config.people_pairs is None and not config.refit_every:
        return
    from klimb.reward.classifier import ClassifierReward
    from klimb.reward.learn.refit import RefittedReward

    option = "refit_every" if config.refit_every else "people_pairs"
    places = [place for place, each in enumerate(reward.rewards) if isinstance(each, ClassifierReward)]
    if len(places) != 1:
        raise ConfigError(
            f"{option}: expected one learned reward beside people, such as --reward people learned/reward; got "
            f"{len(places)}"
        )
    learned = reward.rewards[places[0]]
    people = next(each for each in reward.rewards if isinstance(each, PeopleReward))
    assert isinstance(learned, ClassifierReward)  # noqa: S101  as above
    if config.people_pairs is not None and learned.scorer.members is None:
        raise ConfigError(
            f"people_pairs: people are asked where an ensemble disagrees, and reward {learned.name} has one member: "
            "learn it with klimb reward train --num-members 4"
        )
    if config.refit_every:
        learned = RefittedReward(learned, people.record, every=config.refit_every, seed=config.seed, say=say)
        reward.rewards[places[0]] = learned
    people.member_scores = learned.member_scores


def store_claimed(config: TrainConfig) -> AbstractContextManager[None]:
    """Keep other processes from the store of a run that asks people; of another run there is none.

    Raises:
        StoreError: Another process uses it.
    """
    if not config.asks_people:
        return contextlib.nullcontext()
    from klimb.feedback.store.claim import LIVE, claimed

    advice = f"wait for its end, stop it, or choose another --out than {config.out}"
    return claimed(store_of(config), LIVE, advice=advice)


@contextlib.contextmanager
def asking(reward: WeightedSum, interruption: Interruption) -> Iterator[None]:
    """Let people be waited for until the run is to stop, and tell them on their page how it ended."""
    asked = [each for each in reward.rewards if isinstance(each, AsksPeople)]
    for each in asked:
        each.is_stopping = lambda: interruption.was_asked_for
    ending, has_finished = (
        "The run was stopped. All that you said is saved, and counts when it goes on.",
        False,
    )
    try:
        yield
        ending, has_finished = (
            "The run has finished: the model has learned from all that you said. You may close this page.",
            True,
        )
    finally:
        for each in asked:
            each.finish(ending, has_finished=has_finished)
