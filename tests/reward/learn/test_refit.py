"""A learned reward that goes on learning in a run is a function of the step and of what people said before it."""

import itertools

import numpy as np
import pytest

from klimb.reward.classifier import ClassifierReward
from klimb.reward.learn.refit import RefittedReward
from klimb.reward.learn.scale import spread_within
from klimb.reward.record import JudgedPair, JudgementRecord
from klimb.reward.reward import Batch, WeightedSum
from klimb.reward.scorer import Scorer
from klimb.reward.state import TrainerState

TEXTS = ["a", "bb", "ccc", "dddd", "zz", "yyy", "xxxx", "w"]


@pytest.fixture
def reward_folder(model_folder, tmp_path):
    scorer = Scorer.from_base(model_folder)
    size = scorer.head.weight.shape[1]
    generator = np.random.default_rng(0)
    scorer.set_head(generator.normal(size=size).astype(np.float32))
    scorer.members = generator.normal(size=(3, size)).astype(np.float32)
    scorer.save(tmp_path / "reward")
    return tmp_path / "reward"


@pytest.fixture
def record(tmp_path, reward_folder):
    """What was said in six steps, as another linear head orders the texts."""
    scorer = Scorer.load(reward_folder)
    taste = np.random.default_rng(5).normal(size=scorer.head.weight.shape[1])
    made = JudgementRecord(tmp_path / "people.jsonl")
    for step in range(6):
        texts = [f"{text}{step}" for text in TEXTS]
        liked = scorer.features([scorer.encode(f"p{step}", text) for text in texts]) @ taste
        said = [
            JudgedPair(f"p{step}", *texts[left : left + 2], ("first" if worth > other else "second",))
            for left, (worth, other) in enumerate(itertools.pairwise(liked))
        ]
        made.add(step, said)
    return made


@pytest.fixture
def make(reward_folder, record):
    said = []

    def make(every=2, **options):
        return RefittedReward(
            ClassifierReward(reward_folder), record, every=every, say=said.append, **options
        )

    make.said = said
    return make


def batch_at(step, prompts=("p0",) * 8, texts=tuple(f"{text}0" for text in TEXTS)):
    return Batch(list(prompts), list(texts), state=TrainerState(global_step=step))


def test_until_the_first_time_the_reward_is_the_one_that_the_run_began_with(make, reward_folder):
    reward = make()
    assert reward(batch_at(1)) == ClassifierReward(reward_folder)(batch_at(1))
    assert make.said == []
    assert reward(batch_at(2)) != reward(batch_at(1))
    assert len(make.said) == 1
    assert make.said[0].startswith(f"step 3: reward {reward_folder} refitted with 14 judgements of this run")


def test_it_learns_what_people_say_and_keeps_its_scale(make, record):
    reward = make()
    judged = [pair for _, pairs in record.before(6) for pair in pairs]
    prompts = [pair.prompt for pair in judged for _ in range(2)]
    texts = [text for pair in judged for text in (pair.first, pair.second)]

    def right(step):
        scores = np.array(reward(batch_at(step, prompts, texts)))
        return np.mean((scores[::2] > scores[1::2]) == [pair.said == ("first",) for pair in judged])

    assert right(0) < 0.7
    assert right(6) > 0.8
    units = np.repeat(np.arange(6), 8)
    every = [(f"p{step}", f"{text}{step}") for step in range(6) for text in TEXTS]
    before, after = (
        np.array(reward(batch_at(step, *zip(*every, strict=True))), dtype=np.float64) for step in (0, 6)
    )
    # Bits aside the scale is that of the start: texts are read in other batches here.
    assert spread_within(after, units) == pytest.approx(spread_within(before, units), rel=1e-4)


@pytest.mark.slow
def test_another_process_that_begins_at_any_step_learns_the_same_head_to_the_same_bits(make):
    whole = make()
    scores = [(whole(batch_at(step)), whole.member_scores(batch_at(step))) for step in range(7)]
    for step in (6, 5, 3, 2):
        again = make()
        assert again(batch_at(step)) == scores[step][0]
        np.testing.assert_array_equal(again.member_scores(batch_at(step)), scores[step][1])
    assert not np.array_equal(scores[2][1], scores[0][1])  # the members learn, too


def test_what_people_say_later_and_texts_that_cannot_be_read_change_nothing(make, record):
    before = make()(batch_at(3))
    record.add(1, [*record.before(2)[1][1], JudgedPair("p" * 999, "long", "longer", ("first",))])
    record.add(2, [])
    reward = make()
    reward.original.scorer.longest = 64
    assert reward(batch_at(3)) == before


def test_where_people_said_nothing_the_reward_stays_as_it_was(make, record):
    for step in range(2):
        record.add(step, [JudgedPair("p", "a", "b", ("skip",)), JudgedPair("p", "a", "c", ("both_bad",))])
    reward = make()
    assert reward(batch_at(2)) == reward(batch_at(0))


def test_evaluations_go_by_the_reward_that_the_run_began_with(make):
    reward = make()
    learned = WeightedSum([reward])
    begun = learned(batch_at(0)).total
    assert learned(batch_at(4)).total != begun
    assert learned.unattended()(batch_at(4)).total == begun
