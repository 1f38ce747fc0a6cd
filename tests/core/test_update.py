"""The definition: by hand, by finite differences, by enumeration, across libraries."""

import numpy as np
import pytest
import torch

import klimb
from klimb import adjusted_rewards, gradient_ascent, policy_gradient, reinforce_gradient, rlhf_weight_update

DEFINING_CASE = {
    "weights": [1.0, 1.0],
    "rewards": [1.0, 1.0],
    "policy_log_probs": [-1.5, -1.5],
    "ref_log_probs": [-1.5, -1.5],
    "log_prob_grads": [[0.5, -0.5], [0.5, -0.5]],
    "beta": 1.0,
    "lr": 0.1,
}


def case(**changes):
    return DEFINING_CASE | changes


def random_arguments(num_samples=7, num_parameters=5, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "weights": rng.normal(size=num_parameters),
        "rewards": rng.normal(size=num_samples),
        "policy_log_probs": -rng.exponential(size=num_samples),
        "ref_log_probs": -rng.exponential(size=num_samples),
        "log_prob_grads": rng.normal(size=(num_samples, num_parameters)),
        "beta": 0.3,
        "lr": 0.05,
    }


def test_the_defining_case_gives_the_stated_weights():
    # k = 0, so r̃ = 1; g = mean of the rows = [0.5, −0.5]; w + 0.1 g = [1.05, 0.95].
    np.testing.assert_array_equal(rlhf_weight_update(**DEFINING_CASE), [1.05, 0.95])


def test_a_case_worked_out_by_hand_with_unequal_samples():
    # k = [−1 + 2, −3 + 2.5] = [1, −0.5];  r̃ = [2 − 0.5·1, −1 + 0.5·0.5] = [1.5, −0.75]
    # g = ½ (1.5·[1, 2] − 0.75·[4, −2]) = ½ [−1.5, 4.5] = [−0.75, 2.25]
    # w = [0, 1] + 2 g = [−1.5, 5.5]
    updated = rlhf_weight_update(
        weights=[0.0, 1.0],
        rewards=[2.0, -1.0],
        policy_log_probs=[-1.0, -3.0],
        ref_log_probs=[-2.0, -2.5],
        log_prob_grads=[[1.0, 2.0], [4.0, -2.0]],
        beta=0.5,
        lr=2.0,
    )
    np.testing.assert_array_equal(updated, [-1.5, 5.5])


def test_the_parts_compose_to_the_whole():
    arguments = random_arguments()
    kl = arguments["policy_log_probs"] - arguments["ref_log_probs"]
    gradient = reinforce_gradient(
        adjusted_rewards(arguments["rewards"], kl, arguments["beta"]), arguments["log_prob_grads"]
    )
    np.testing.assert_array_equal(
        rlhf_weight_update(**arguments), gradient_ascent(arguments["weights"], gradient, arguments["lr"])
    )


def penalised_reward(logits, ref_logits, rewards, beta):
    """E_π[r] − β KL(π‖π_ref) of a softmax policy, summed over every outcome."""
    log_probs = logits - np.log(np.sum(np.exp(logits)))
    ref_log_probs = ref_logits - np.log(np.sum(np.exp(ref_logits)))
    probs = np.exp(log_probs)
    return probs @ rewards - beta * probs @ (log_probs - ref_log_probs)


def enumerated_gradient(logits, ref_logits, rewards, beta):
    """The expectation of the policy gradient over every outcome of a softmax policy."""
    log_probs = logits - np.log(np.sum(np.exp(logits)))
    ref_log_probs = ref_logits - np.log(np.sum(np.exp(ref_logits)))
    probs = np.exp(log_probs)
    log_prob_grads = np.eye(len(logits)) - probs  # ∂ log π(y) / ∂ logit_v = 1[y = v] − π(v)
    adjusted = adjusted_rewards(rewards, klimb.k1(log_probs, ref_log_probs), beta)
    # reinforce_gradient divides by the number of rows; weights V·π(y) turn its mean into E_π.
    return reinforce_gradient(adjusted * probs * len(logits), log_prob_grads)


@pytest.mark.parametrize("beta", [0.0, 0.3, 2.0])
def test_the_expected_update_is_the_gradient_of_the_penalised_reward(beta):
    rng = np.random.default_rng(1)
    logits, ref_logits, rewards = rng.normal(size=(3, 6))
    step = 1e-5
    finite_differences = [
        (
            penalised_reward(logits + step * unit, ref_logits, rewards, beta)
            - penalised_reward(logits - step * unit, ref_logits, rewards, beta)
        )
        / (2 * step)
        for unit in np.eye(6)
    ]
    np.testing.assert_allclose(
        enumerated_gradient(logits, ref_logits, rewards, beta), finite_differences, atol=1e-9
    )


def test_the_favoured_completion_gains_probability():
    logits = np.zeros(4)
    rewards = np.array([0.0, 0.0, 1.0, 0.0])
    log_probs = np.full(4, np.log(0.25))
    updated = rlhf_weight_update(logits, rewards, log_probs, log_probs, np.eye(4) - 0.25, 0.1, 1.0)
    probs = np.exp(updated) / np.sum(np.exp(updated))
    assert probs[2] > 0.25
    assert np.all(probs[[0, 1, 3]] < 0.25)


def test_a_larger_beta_pulls_the_policy_back_to_the_reference():
    # Outcome 0 is likelier under the policy than under the reference; rewards are equal.
    log_probs, ref_log_probs = np.log([0.7, 0.3]), np.log([0.5, 0.5])
    grads = np.array([[0.3, -0.3], [-0.7, 0.7]])
    weights = np.zeros(2)
    updated = rlhf_weight_update(weights, np.zeros(2), log_probs, ref_log_probs, grads, 1.0, 1.0)
    assert updated[0] < updated[1]
    np.testing.assert_array_equal(
        rlhf_weight_update(weights, np.zeros(2), log_probs, ref_log_probs, grads, 0.0, 1.0), weights
    )


def test_the_order_of_the_samples_does_not_matter():
    arguments = random_arguments()
    order = np.random.default_rng(2).permutation(7)
    per_sample = ("rewards", "policy_log_probs", "ref_log_probs", "log_prob_grads")
    permuted = arguments | {name: arguments[name][order] for name in per_sample}
    np.testing.assert_allclose(rlhf_weight_update(**permuted), rlhf_weight_update(**arguments), rtol=1e-14)


def test_a_zero_learning_rate_changes_nothing():
    arguments = random_arguments() | {"lr": 0.0}
    np.testing.assert_array_equal(rlhf_weight_update(**arguments), arguments["weights"])


def test_the_arguments_are_not_changed():
    arguments = random_arguments()
    before = {name: np.copy(value) for name, value in arguments.items()}
    updated = rlhf_weight_update(**arguments)
    assert not np.shares_memory(updated, arguments["weights"])
    for name, value in before.items():
        np.testing.assert_array_equal(arguments[name], value)


ARRAY_NAMES = ("weights", "rewards", "policy_log_probs", "ref_log_probs", "log_prob_grads")


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ([np.float32] * 5, np.float32),
        ([np.float64] * 5, np.float64),
        ([np.float32, np.float64, np.float32, np.float32, np.float32], np.float64),
        ([np.int64] * 5, np.float64),
        ([np.float32, np.int32, np.float32, np.float32, np.int8], np.float32),
    ],
)
def test_the_result_has_the_promoted_floating_dtype(dtypes, expected):
    arrays = {
        name: np.asarray(DEFINING_CASE[name]).astype(dtype)
        for name, dtype in zip(ARRAY_NAMES, dtypes, strict=True)
    }
    assert rlhf_weight_update(**case(**arrays)).dtype == expected


def test_lists_adopt_the_dtype_of_the_arrays_beside_them():
    updated = rlhf_weight_update(**case(weights=np.ones(2, dtype=np.float32)))
    assert updated.dtype == np.float32


def test_lists_of_whole_numbers_are_taken():
    updated = rlhf_weight_update([1, 1], [2], [0], [0], [[1, -1]], beta=0, lr=1)
    np.testing.assert_array_equal(updated, [3.0, -1.0])


def test_torch_and_numpy_agree_in_float64():
    arguments = random_arguments()
    tensors = {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in arguments.items()
    }
    updated = rlhf_weight_update(**tensors)
    assert isinstance(updated, torch.Tensor)
    np.testing.assert_allclose(updated.numpy(), rlhf_weight_update(**arguments), rtol=1e-14)


def test_gradients_flow_through_the_update_in_torch():
    arguments = random_arguments()
    rewards = torch.tensor(arguments["rewards"], requires_grad=True)
    tensors = {name: torch.as_tensor(arguments[name]) for name in ARRAY_NAMES} | {"rewards": rewards}
    rlhf_weight_update(**tensors, beta=0.3, lr=0.05).sum().backward()
    # ∂ Σ_p w_p / ∂ r_i = (lr / N) Σ_p G_ip
    expected = 0.05 / 7 * arguments["log_prob_grads"].sum(axis=1)
    assert rewards.grad is not None
    np.testing.assert_allclose(rewards.grad.numpy(), expected, rtol=1e-13)


NOT_A_NUMBER = [float("nan"), 1.0]
INFINITE = [1.0, float("inf")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": []}, r"rewards: expected at least one sample, got shape \(0,\)"),
        ({"rewards": 1.0}, r"rewards: expected shape \(N,\), got \(\)"),
        ({"rewards": [[1.0, 1.0]]}, r"rewards: expected shape \(N,\), got \(1, 2\)"),
        ({"weights": [[1.0, 1.0]]}, r"weights: expected shape \(P,\), got \(1, 2\)"),
        ({"weights": [1.0, 1.0, 1.0]}, r"log_prob_grads: expected shape \(2, 3\), got \(2, 2\)"),
        ({"policy_log_probs": [-1.5]}, r"policy_log_probs: expected shape \(2,\), got \(1,\)"),
        ({"ref_log_probs": [-1.5] * 3}, r"ref_log_probs: expected shape \(2,\), got \(3,\)"),
        ({"log_prob_grads": [0.5, -0.5]}, r"log_prob_grads: expected shape \(2, 2\), got \(2,\)"),
        ({"log_prob_grads": [[0.5, 0.5], [0.5]]}, "log_prob_grads: .* unequal length"),
        ({"weights": INFINITE}, r"weights: expected finite numbers, got inf at \[1\]"),
        ({"rewards": NOT_A_NUMBER}, r"rewards: expected finite numbers, got nan at \[0\]"),
        ({"policy_log_probs": [-float("inf"), -1.0]}, "policy_log_probs: expected finite numbers, got -inf"),
        ({"ref_log_probs": NOT_A_NUMBER}, "ref_log_probs: expected finite numbers"),
        ({"log_prob_grads": [[0.5, 0.5], NOT_A_NUMBER]}, r"log_prob_grads: .*got nan at \[1, 0\]"),
        ({"rewards": ["good", "bad"]}, "rewards: expected real numbers, got dtype <U4"),
        ({"rewards": [None, 1.0]}, "rewards: expected real numbers, got dtype object"),
        ({"weights": np.ones(2, dtype=complex)}, "weights: expected real numbers, got dtype complex128"),
        ({"beta": -0.1}, "beta: expected a finite number of at least 0, got -0.1"),
        ({"beta": float("nan")}, "beta: expected a finite number"),
        ({"lr": -1}, "lr: expected a finite number of at least 0, got -1"),
        ({"lr": float("inf")}, "lr: expected a finite number"),
        (
            {"weights": torch.ones(2), "rewards": np.ones(2)},
            "expected arrays of one library.*weights.*rewards",
        ),
    ],
)
def test_bad_input_is_a_value_error_that_names_the_argument(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        rlhf_weight_update(**case(**changes))
    assert isinstance(caught.value, klimb.KlimbError)


def test_the_general_gradient_sums_tokens_by_their_score_weights():
    # 2·(1, 0) − 1·(0, 1) + 0·anything
    gradients = [[[1.0, 0.0], [0.0, 1.0]], [[3.0, 3.0], [5.0, 5.0]]]
    np.testing.assert_array_equal(policy_gradient([[2.0, -1.0], [0.0, 0.0]], gradients), [2.0, -1.0])
    advantages, per_token = np.array([1.0, 3.0]), np.random.default_rng(0).normal(size=(2, 3, 4))
    np.testing.assert_allclose(
        policy_gradient(advantages[:, None] / 2 + np.zeros((2, 3)), per_token),
        reinforce_gradient(advantages, per_token.sum(axis=1)),
        rtol=1e-13,
    )


def test_the_general_gradient_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"one axis; the mean over completions is reinforce_gradient"):
        policy_gradient([1.0], [[1.0]])
    with pytest.raises(ValueError, match=r"token_gradients: expected shape \(1, 2, P\), got \(1, 1, 1\)"):
        policy_gradient([[1.0, 2.0]], [[[1.0]]])
    with pytest.raises(ValueError, match="score_weights: expected finite"):
        policy_gradient([[np.nan]], [[[1.0]]])
    with pytest.raises(ValueError, match="token_gradients: expected finite"):
        policy_gradient([[1.0]], [[[np.inf]]])
