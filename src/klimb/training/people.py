"""People as the reward of a run: the store of their judgements, its lock, and how the page ends."""

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from klimb.config.sections import CheckpointOptions, PeopleOptions
from klimb.errors import ConfigError, StoreError
from klimb.feedback.rater_report import RaterReport
from klimb.io.progress import Say
from klimb.reward.people import People, PeopleReward
from klimb.reward.reward import AsksPeople, WeightedSum
from klimb.training.signals import Interruption

_STORE = "people.db"  # in the run's folder


def store_of(options: CheckpointOptions) -> Path:
    """Where a run keeps what people say."""
    return options.out / _STORE


def assess_raters(run: Path) -> RaterReport:
    """Say what looks wrong with the answers of those who judged in a run; nothing where their store is not there."""
    from klimb.feedback.raters import account_for, opinions_of
    from klimb.feedback.store.store import Store  # runs without people need no database

    try:
        with Store.open(run / _STORE, must_exist=True) as store:
            return account_for(opinions_of(store.judgements()))
    except StoreError:
        return RaterReport()


def ask_people(options: PeopleOptions, store: Path, say: Say) -> PeopleReward:
    """Make people the reward of a run, whose page has an address that can be listened on."""
    people = People(store, options.people_page, say, num_pairs=options.people_pairs)
    reward = PeopleReward(people)
    reward.check()
    return reward


def join_people(options: PeopleOptions, reward: WeightedSum, say: Say, *, seed: int) -> None:
    """Let a learned reward and people work together: it says what to ask, and learns from what they say.

    Args:
        options: Which pairs people are asked about, and how often the learned reward is learned anew.
        reward: The rewards of the run, of which the learned one may be replaced by one that learns.
        say: Takes a line after each refit.
        seed: The run's, from which the members of an ensemble draw prompts.

    Raises:
        ConfigError: There is no such reward, or there are two.
    """
    if options.people_pairs is None and not options.refit_every:
        return
    from klimb.reward.classifier import ClassifierReward
    from klimb.reward.learn.refit import RefittedReward

    option = "refit_every" if options.refit_every else "people_pairs"
    places = [place for place, each in enumerate(reward.rewards) if isinstance(each, ClassifierReward)]
    if len(places) != 1:
        raise ConfigError(
            f"{option}: expected one learned reward beside people, such as --reward people learned/reward; got "
            f"{len(places)}"
        )
    learned = reward.rewards[places[0]]
    people = next(each for each in reward.rewards if isinstance(each, PeopleReward))
    assert isinstance(learned, ClassifierReward)  # noqa: S101  as above
    if options.people_pairs is not None and learned.scorer.members is None:
        raise ConfigError(
            f"people_pairs: pairs are chosen where an ensemble disagrees, and reward {learned.name} has one member: "
            "learn it with klimb reward train --num-members 4"
        )
    if options.refit_every:
        learned = RefittedReward(learned, people.record, every=options.refit_every, seed=seed, say=say)
        reward.rewards[places[0]] = learned
    people.member_scores = learned.member_scores


def store_claimed(options: CheckpointOptions, *, asks_people: bool) -> AbstractContextManager[None]:
    """Keep other processes from the store of a run that asks people; another run has none.

    Raises:
        StoreError: Another process uses it.
    """
    if not asks_people:
        return contextlib.nullcontext()
    from klimb.feedback.store.claim import LIVE, claimed

    advice = f"wait until it ends, stop it, or choose another --out than {options.out}"
    return claimed(store_of(options), LIVE, advice=advice)


@contextlib.contextmanager
def asking(reward: WeightedSum, interruption: Interruption) -> Iterator[None]:
    """Let people be waited for until the run is to stop, and tell them on their page how it ended."""
    asked = [each for each in reward.rewards if isinstance(each, AsksPeople)]
    for each in asked:
        each.is_stopping = lambda: interruption.was_asked_for
    ending, has_finished = (
        "The run was stopped. All that you said is saved, and counts when the run resumes.",
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
