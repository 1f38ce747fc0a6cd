"""The same functions on every array library; the result lives where the arguments live."""

import functools

import array_api_strict
import dask.array
import jax
import numpy as np
import pytest
import torch

import klimb
from klimb.core import baselines, masks, returns, whitening
from klimb.core.advantages import BASELINES
from klimb.core.length_penalty import overlong_penalty
from klimb.core.values import explained_variance, value_weights
from literal_surrogates import GROUPS, LENGTHS, LIMIT, OBJECTIVES, random_completions

NAMES = ("weights", "rewards", "policy_log_probs", "ref_log_probs", "log_prob_grads")
LIBRARIES = {
    "torch": torch.asarray,
    "array_api_strict": array_api_strict.asarray,
    "jax": jax.numpy.asarray,
    "dask": functools.partial(dask.array.from_array, chunks=3),
}


@pytest.fixture
def arguments():
    rng = np.random.default_rng(0)
    sizes = {"weights": 5, "rewards": 8, "policy_log_probs": 8, "ref_log_probs": 8, "log_prob_grads": (8, 5)}
    return {name: rng.normal(size=size) for name, size in sizes.items()}


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_definition_gives_the_same_on_every_library(library, arguments):
    converted = {name: LIBRARIES[library](array) for name, array in arguments.items()}
    updated = klimb.rlhf_weight_update(**converted, beta=0.3, lr=0.1)
    assert type(updated) is type(converted["weights"])
    expected = klimb.rlhf_weight_update(**arguments, beta=0.3, lr=0.1)
    np.testing.assert_allclose(np.asarray(updated), expected, rtol=1e-13)


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_equation_gives_the_same_on_every_library(library):
    rng = np.random.default_rng(1)
    convert = LIBRARIES[library]
    rewards = rng.normal(size=(3, 4))
    is_valid = np.array([[True, False, True, True], [False] * 4, [False, True, False, False]])
    for baseline in BASELINES.values():
        np.testing.assert_allclose(np.asarray(baseline(convert(rewards))), baseline(rewards), atol=1e-13)
        masked = baseline(convert(rewards), is_valid=convert(is_valid))
        assert type(masked) is type(convert(rewards))
        np.testing.assert_allclose(np.asarray(masked), baseline(rewards, is_valid=is_valid), atol=1e-13)
    policy, reference = (np.log(rng.dirichlet(np.ones(6))) for _ in range(2))
    for function in (klimb.k1, klimb.k2, klimb.k3, klimb.exact_kl):
        np.testing.assert_allclose(
            np.asarray(function(convert(policy), convert(reference))), function(policy, reference), rtol=1e-12
        )
    surrogate = klimb.reinforce(convert(policy), convert(reference), num_samples=6)
    assert float(surrogate) == pytest.approx(
        float(klimb.reinforce(policy, reference, num_samples=6)), rel=1e-13
    )
    np.testing.assert_allclose(np.asarray(klimb.whiten(convert(rewards))), klimb.whiten(rewards), atol=1e-12)


@pytest.mark.parametrize("library", ["torch", "array_api_strict"])
def test_bad_values_are_named_on_eager_libraries(library, arguments):
    arguments["log_prob_grads"][2, 3] = np.nan
    converted = {name: LIBRARIES[library](array) for name, array in arguments.items()}
    with pytest.raises(ValueError, match=r"log_prob_grads: expected finite numbers, got nan at \[2, 3\]"):
        klimb.rlhf_weight_update(**converted, beta=0.3, lr=0.1)


@pytest.mark.parametrize("library", ["jax", "dask"])
def test_lazy_libraries_check_shapes_and_pass_values_on(library, arguments):
    convert = LIBRARIES[library]
    converted = {name: convert(array) for name, array in arguments.items()}
    with pytest.raises(ValueError, match=r"rewards: expected shape \(N,\), got \(8, 5\)"):
        klimb.rlhf_weight_update(**(converted | {"rewards": converted["log_prob_grads"]}), beta=0.3, lr=0.1)
    arguments["rewards"][0] = np.nan
    updated = klimb.rlhf_weight_update(
        **(converted | {"rewards": convert(arguments["rewards"])}), beta=0.3, lr=0.1
    )
    assert np.isnan(np.asarray(updated)).all()


def test_jax_compiles_and_differentiates_the_step(arguments):
    step = jax.jit(functools.partial(klimb.rlhf_weight_update, beta=0.3, lr=0.1))
    arrays = {name: jax.numpy.asarray(array) for name, array in arguments.items()}
    expected = klimb.rlhf_weight_update(**arguments, beta=0.3, lr=0.1)
    np.testing.assert_allclose(np.asarray(step(**arrays)), expected, rtol=1e-13)
    gradient = jax.grad(lambda rewards: step(**(arrays | {"rewards": rewards})).sum())(arrays["rewards"])
    np.testing.assert_allclose(
        np.asarray(gradient), 0.1 / 8 * arguments["log_prob_grads"].sum(axis=1), rtol=1e-12
    )


def test_jax_keeps_a_sharded_matrix_where_it_is(arguments):
    devices = jax.devices()
    assert len(devices) == 4, "tests/conftest.py asks for four host devices"
    mesh = jax.sharding.Mesh(np.array(devices), ("samples",))
    spec = jax.sharding.PartitionSpec
    arrays = {name: jax.numpy.asarray(array) for name, array in arguments.items()}
    for name in NAMES[1:]:
        arrays[name] = jax.device_put(arrays[name], jax.sharding.NamedSharding(mesh, spec("samples")))
    assert len(arrays["log_prob_grads"].sharding.device_set) == 4
    step = jax.jit(functools.partial(klimb.rlhf_weight_update, beta=0.3, lr=0.1))
    expected = klimb.rlhf_weight_update(**arguments, beta=0.3, lr=0.1)
    np.testing.assert_allclose(np.asarray(step(**arrays)), expected, rtol=1e-13)
    updated = klimb.rlhf_weight_update(**arrays, beta=0.3, lr=0.1)
    np.testing.assert_allclose(np.asarray(updated), expected, rtol=1e-13)


def test_dask_computes_nothing_until_it_is_asked(arguments):
    def refuse(_block):
        raise AssertionError("computed too early")

    lazy = {name: dask.array.from_array(array, chunks=3) for name, array in arguments.items()}
    lazy["log_prob_grads"] = lazy["log_prob_grads"].map_blocks(refuse, dtype=float, meta=np.empty((0, 0)))
    updated = klimb.rlhf_weight_update(**lazy, beta=0.3, lr=0.1)
    with pytest.raises(AssertionError, match="computed too early"):
        updated.compute(scheduler="synchronous")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the cluster's own making
def test_dask_computes_on_a_cluster_of_two_workers(arguments):
    from dask.distributed import Client, LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster):
        lazy = {name: dask.array.from_array(array, chunks=3) for name, array in arguments.items()}
        updated = klimb.rlhf_weight_update(**lazy, beta=0.3, lr=0.1).compute()
    np.testing.assert_allclose(updated, klimb.rlhf_weight_update(**arguments, beta=0.3, lr=0.1), rtol=1e-13)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_score_weights_of_every_axis_are_the_same_on_every_library(library, objective):
    convert, is_counted = LIBRARIES[library], LENGTHS != 1
    new, batch, _ = random_completions()

    def weigh(convert):
        arrays = {name: convert(array) for name, array in vars(batch).items() if array is not None}
        counted = klimb.TokenBatch(**arrays | {"is_counted": convert(is_counted)})
        counts = klimb.count_denominators(
            convert(LENGTHS.astype(float)),
            convert(GROUPS.astype(float)),
            convert(is_counted),
            max_length=LIMIT,
        )
        return klimb.score_weights(convert(new), counted, objective, counts)

    found, expected = weigh(convert), weigh(np.asarray)
    assert type(found) is type(convert(new))
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-12, atol=1e-15)
    gradients = np.random.default_rng(2).normal(size=(*new.shape, 3))
    np.testing.assert_allclose(
        np.asarray(klimb.policy_gradient(found, convert(gradients))),
        np.einsum("nt,ntp->p", expected, gradients),
        atol=1e-12,
    )


@pytest.mark.parametrize("library", LIBRARIES)
def test_advantages_of_tokens_are_the_same_on_every_library(library):
    rng, convert = np.random.default_rng(3), LIBRARIES[library]
    rewards, lengths = rng.uniform(size=(3, 4)), rng.integers(1, 6, size=(3, 4)).astype(float)
    is_valid = np.array([[True, False, True, True], [False] * 4, [False, True, False, False]])
    token_rewards, values, old_values = (rng.normal(size=(4, 5)) for _ in range(3))
    is_token = np.arange(5) < np.array([5, 1, 0, 3])[:, None]

    def everything(make):
        one = make(rewards)
        yield baselines.group_mean(one, is_valid=make(is_valid))
        yield baselines.length_weighted(one, make(lengths), is_valid=make(is_valid))
        yield baselines.greedy_baseline(one, make(rewards[:, 0]), is_valid=make(is_valid))
        for scale in baselines.SCALES:
            yield baselines.scaled(one, one, scale, is_valid=make(is_valid))
        yield masks.uniform_groups(one, is_valid=make(is_valid))
        yield returns.returns_to_go(make(token_rewards), make(is_token), 0.9)
        yield from returns.generalised_advantages(make(token_rewards), make(values), make(is_token), 0.9, 0.8)
        yield whitening.whiten_tokens(make(values), make(is_token), ddof=1)
        yield value_weights(make(values), make(old_values), make(token_rewards), 0.2)
        yield explained_variance(make(values), make(token_rewards), make(is_token))
        yield overlong_penalty(make(lengths[0]), 5, 2)
        yield masks.exceeds_drift(make(values), make(old_values), make(token_rewards), make(is_token), 0.1)

    for found, expected in zip(everything(convert), everything(np.asarray), strict=True):
        np.testing.assert_allclose(np.asarray(found), expected, atol=1e-12)
