"""What is asked next: where an ensemble's members disagree."""

import numpy as np
import pytest

from klimb.core.preferences import preference_disagreement
from klimb.errors import ConfigError, DataError
from klimb.feedback.records import Answer, Candidate
from klimb.feedback.store.store import Store
from klimb.reward.learn.active import disagreement, most_telling, prioritise
from klimb.reward.scorer import Scorer


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "feedback.db") as opened:
        opened.add_pairs([("p", Candidate(f"a{number} x"), Candidate(f"b{number}")) for number in range(6)])
        yield opened


@pytest.fixture
def save_reward(model_folder, tmp_path):
    def save(num_members):
        scorer = Scorer.from_base(model_folder)
        if num_members:
            size = scorer.head.weight.shape[1]
            scorer.members = np.random.default_rng(0).normal(size=(num_members, size)).astype(np.float32)
        folder = tmp_path / f"reward-{num_members}"
        scorer.save(folder)
        return str(folder)

    return save


def test_disagreement_by_hand():
    # Features are the scores' parts: member 0 sees the first, member 1 the second.
    features = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]])
    found = disagreement(features, np.eye(2), np.array([0, 2]), np.array([1, 0]))
    # Margins: pair (0, 1): 1 and −1; pair (2, 0): 1 and 2.
    np.testing.assert_allclose(found, preference_disagreement([[1.0, 1.0], [-1.0, 2.0]]), rtol=1e-14)
    assert found[0] > found[1]


def test_the_most_telling_pairs_share_no_text():
    worth = np.array([0.9, 0.8, 0.7, 0.6, 0.1])
    left, right = np.array([0, 1, 2, 0, 4]), np.array([1, 2, 3, 3, 5])
    np.testing.assert_array_equal(most_telling(worth, left, right, 5), [0, 2, 4])
    np.testing.assert_array_equal(most_telling(worth, left, right, 1), [0])


def test_the_store_asks_first_where_the_members_disagree_most(store, save_reward):
    reward = save_reward(4)
    answered = store.next_question("ann")
    store.judge(Answer(answered.pair_id, "ann", "first", "k"))
    assert prioritise(store, reward) == 5
    scorer = Scorer.load(reward)
    worth = {}
    for question in store.open_questions():
        texts = [scorer.encode("p", text) for text in (question.first, question.second)]
        margins = scorer.features(texts)[0] - scorer.features(texts)[1]
        worth[question.pair_id] = float(preference_disagreement((scorer.members @ margins)[:, None])[0])
    asked = [store.next_question(f"rater {number}").pair_id for number in range(5)]
    assert asked == sorted(worth, key=worth.get, reverse=True)
    assert asked != sorted(asked)


def test_a_reward_alone_cannot_disagree(store, save_reward):
    with pytest.raises(ConfigError, match="one member, which cannot disagree"):
        prioritise(store, save_reward(0))


def test_nothing_left_to_ask_is_said(store, save_reward):
    while (question := store.next_question("ann")) is not None:
        store.judge(Answer(question.pair_id, "ann", "tie", str(question.pair_id)))
    with pytest.raises(DataError, match="every pair has been judged"):
        prioritise(store, save_reward(4))
