"""Guards: what each finds in the numbers of a run, and what a run then does."""

import io
import itertools
import json

import pytest
from rich.console import Console
from safetensors.torch import load_file

from klimb.config.train import TrainConfig
from klimb.errors import DivergedError, GuardError
from klimb.rl.guards import (
    GUARDS,
    MOST_SLOWINGS,
    Bounds,
    Guards,
    watch_gap,
    watch_high_entropy,
    watch_kl,
    watch_low_entropy,
    watch_one_text,
    watch_spike,
)
from klimb.rl.metrics import duplicate_share
from klimb.rl.optimizer import PolicyOptimizer
from klimb.training.report.console import Display
from klimb.training.run import train

HEALTHY = {
    "kl": 12.0,
    "length": 16.0,
    "entropy": 2.0,
    "duplicate_rate": 0.1,
    "grad_norm": 1.0,
    "sampler_gap_mean": 6e-6,
}


def config(**changes):
    options = {"model": "m", "prompts": "p", "reward": ("r",), "out": "o", "eval_prompts": None}
    return TrainConfig.from_dict(options | changes)


def bounds(**changes):
    options = config(**changes)
    return Bounds(options, options.completions_per_step, options.precision)


def steps(*changes):
    return [HEALTHY | {"step": number} | change for number, change in enumerate(changes)]


def quiet():
    return Display(Console(file=io.StringIO(), width=300))


def lines_of(config):
    return [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("guard", GUARDS)
def test_a_healthy_run_is_left_alone(guard):
    run = steps(
        *[{"entropy": 2.6 - 0.02 * step, "kl": 0.3 * step, "grad_norm": 1 + step % 3} for step in range(40)]
    )
    for number in range(1, 41):
        assert guard(run[:number], bounds()) is None


@pytest.mark.parametrize(
    ("guard", "changes", "option", "usual", "past", "words"),
    [
        (watch_kl, {"max_kl": 20.0}, "max_kl 20", {"kl": 48.1}, {"kl": 20.1}, "KL 20.1 nats per completion"),
        (
            watch_low_entropy, {"min_entropy": 0.5}, "min_entropy 0.5", {"entropy": 0.19}, {"entropy": 0.49},
            "entropy 0.49 nats per token, below",
        ),
        (
            watch_high_entropy, {"max_entropy": 4.0}, "max_entropy 4", {"entropy": 5.1}, {"entropy": 4.1},
            "entropy 4.10 nats per token, above",
        ),
        (
            watch_one_text, {"max_duplicate_share": 0.5}, "max_duplicate_share 0.5",
            {"duplicate_rate": 0.91}, {"duplicate_rate": 0.75}, "75% of the completions",
        ),
        (
            watch_spike, {"max_grad_spike": 3.0}, "max_grad_spike 3",
            {"grad_norm": 10.1}, {"grad_norm": 3.1}, "3.1 times as long",
        ),
    ],
)  # fmt: skip
def test_a_guard_warns_at_its_usual_bound_and_acts_at_a_stated_one(
    guard, changes, option, usual, past, words
):
    before = [{}] * 6
    assert guard(steps(*before, past), bounds()) is None
    warning = guard(steps(*before, usual), bounds())
    assert not warning.is_stated
    assert "the usual" in str(warning)
    found = guard(steps(*before, past), bounds(**changes))
    assert found.is_stated
    assert words in str(found)
    assert option in str(found)
    assert found.cause in str(found)
    assert found.remedy in str(found)


@pytest.mark.parametrize(
    ("guard", "changes", "at"),
    [
        (watch_kl, {"max_kl": 20.0}, {"kl": 20.0}),
        (watch_low_entropy, {"min_entropy": 0.5}, {"entropy": 0.5}),
        (watch_high_entropy, {"max_entropy": 4.0}, {"entropy": 4.0}),
        (watch_one_text, {"max_duplicate_share": 0.5}, {"duplicate_rate": 0.5}),
        (watch_spike, {"max_grad_spike": 3.0}, {"grad_norm": 3.0}),
    ],
)
def test_a_bound_itself_is_allowed(guard, changes, at):
    assert guard(steps(*[{}] * 6, at), bounds(**changes)) is None


def test_the_usual_kl_grows_with_the_completions():
    assert watch_kl(steps({"kl": 600.0, "length": 300.0}), bounds()) is None
    assert watch_kl(steps({"kl": 600.0, "length": 100.0}), bounds()) is not None


def test_a_spike_needs_steps_before_it_and_a_gradient_that_is_not_0():
    assert watch_spike(steps(*[{}] * 4, {"grad_norm": 1e9}), bounds()) is None
    assert watch_spike(steps(*[{}] * 5, {"grad_norm": 1e9}), bounds()) is not None
    assert watch_spike(steps(*[{"grad_norm": 0.0}] * 9, {"grad_norm": 1e9}), bounds()) is None
    rare_reward = [{"grad_norm": 0.0}] * 8 + [{"grad_norm": 1.0}]
    assert watch_spike(steps(*rare_reward, *[{"grad_norm": 0.0}] * 5, {"grad_norm": 1.5}), bounds()) is None


def test_few_completions_may_be_one_text():
    assert (
        watch_one_text(steps({"duplicate_rate": 1.0}), bounds(prompts_per_step=1, completions_per_prompt=3))
        is None
    )
    assert (
        watch_one_text(steps({"duplicate_rate": 1.0}), bounds(prompts_per_step=1, completions_per_prompt=4))
        is not None
    )


@pytest.mark.parametrize(
    ("changes", "gap", "is_found"),
    [
        ({}, 4e-4, False),
        ({}, 6e-4, True),
        ({"precision": "bfloat16"}, 0.05, False),
        ({"precision": "bfloat16"}, 0.13, True),
        ({"max_logprob_mismatch": 0.01}, 0.004, False),
        ({"max_logprob_mismatch": 0.01}, 0.006, True),
    ],
)
def test_a_gap_that_creeps_up_is_told_before_it_stops_the_run(changes, gap, is_found):
    found = watch_gap(steps(*[{"sampler_gap_mean": gap}] * 6), bounds(**changes))
    assert (found is not None) == is_found
    assert found is None or not found.is_stated


def test_one_text_is_counted_over_the_whole_batch():
    assert duplicate_share(["a", "b", "a", "a"]) == 0.75
    assert duplicate_share(["a", "b"]) == 0.5


def make_guards(**changes):
    optimizer = object.__new__(PolicyOptimizer)  # nothing of it but its rate is touched
    optimizer.rate_scale = 1.0
    return Guards(bounds(**changes), optimizer), optimizer


def test_only_what_is_new_is_shown_again():
    guards, _ = make_guards()
    shown = [[found.guard for found in guards.new(guards.check(step))] for step in
             steps({}, {"kl": 99.0}, {"kl": 99.0}, {"kl": 99.0, "duplicate_rate": 1.0}, {}, {"kl": 99.0})]  # fmt: skip
    assert shown == [[], ["kl"], [], ["one text"], [], ["kl"]]


def test_a_usual_bound_never_stops_or_slows():
    guards, optimizer = make_guards(on_alarm="slow")
    for step in steps(*[{"kl": 999.0, "duplicate_rate": 1.0, "entropy": 99.0}] * 50):
        assert guards.act(guards.check(step)) is None
    assert optimizer.rate_scale == 1.0


def test_a_stated_bound_stops_with_cause_and_remedy():
    guards, _ = make_guards(max_kl=10.0)
    with pytest.raises(GuardError, match=r"^step 1: KL 12\.0 .* max_kl 10; likely a reward .*: raise --beta"):
        guards.act(guards.check(*steps({})))


def test_slowing_halves_the_rate_with_rests_between_and_then_stops():
    guards, optimizer = make_guards(max_kl=10.0, on_alarm="slow")
    scales = []
    *slowed, last = steps(*[{}] * 16)
    for step in slowed:
        guards.act(guards.check(step))
        scales.append(optimizer.rate_scale)
    found = guards.check(last)
    with pytest.raises(GuardError, match="step 16 after 3 halvings of the learning rate: KL"):
        guards.act(found)
    assert scales == [0.5] * 5 + [0.25] * 5 + [0.125] * 5
    assert MOST_SLOWINGS == 3


def test_guards_that_are_restored_go_on_as_if_they_had_not_been_away():
    run = steps(
        *[{"grad_norm": 1.0, "kl": 12.0 if step in {3, 20} else 1.0} for step in range(40)],
        {"grad_norm": 11.0},
    )
    options = {"max_kl": 10.0, "on_alarm": "slow"}
    whole, whole_ascent = make_guards(**options)
    expected = []
    for step in run:
        found = whole.check(step)
        expected.append((found, whole.new(found), whole.act(found), whole_ascent.rate_scale))
    for cut in (1, 4, 5, 25, 40):
        first, first_ascent = make_guards(**options)
        got = []
        for step in run[:cut]:
            found = first.check(step)
            got.append((found, first.new(found), first.act(found), first_ascent.rate_scale))
        second, second_ascent = make_guards(**options)
        second.restore(json.loads(json.dumps(first.state())))
        assert second_ascent.rate_scale == first_ascent.rate_scale
        for step in run[cut:]:
            found = second.check(step)
            got.append((found, second.new(found), second.act(found), second_ascent.rate_scale))
        assert got == expected


def test_the_state_does_not_grow_with_the_run():
    guards, _ = make_guards()
    sizes = []
    for step in steps(*[{}] * 200):
        guards.check(step)
        sizes.append(len(json.dumps(guards.state())))
    assert max(sizes[100:]) <= max(sizes[:50]) + 100


@pytest.mark.parametrize(
    ("changes", "step", "words"),
    [
        ({"max_kl": 1e-6, "lr": 0.05}, 2, "KL"),
        ({"min_entropy": 50.0}, 1, "below min_entropy 50"),
        ({"max_entropy": 0.01}, 1, "above max_entropy 0.01"),
        ({"max_duplicate_share": 0.01}, 1, "more than max_duplicate_share 0.01"),
        ({"max_grad_spike": 1e-6}, 6, "past max_grad_spike 1e-06"),
    ],
)
def test_each_guard_stops_a_run(changes, step, words, make_config):
    options = make_config(num_steps=8, checkpoint_every=1, keep_checkpoints=None, **changes)
    with pytest.raises(GuardError, match=rf"^step {step}: .*{words}") as caught:
        train(options, quiet())
    lines = lines_of(options)
    assert [row["step"] for row in lines] == list(range(step))
    assert lines[-1]["guards"]
    # Found of the weights after step − 1 steps; those of one step less are the last good.
    notes = " ".join(caught.value.__notes__)
    good = step - 2
    if good < 1:
        assert "the last good weights are those that the run began with" in notes
    else:
        assert f"the last good weights are those after step {good}; go back to them, " in notes
        assert f"klimb train --resume {options.out} --from-step {good} --lr" in notes
        assert (options.out / "checkpoints" / f"step-{good:06d}" / "state.json").is_file()


def test_the_checkpoint_of_the_start_is_none_to_go_back_to(make_config):
    options = make_config(
        num_steps=8, checkpoint_every=20, keep_best="reward", eval_every=4, judge="same", max_kl=1e-9
    )
    with pytest.raises(GuardError) as caught:
        train(options, quiet())
    assert (options.out / "checkpoints" / "step-000000").is_dir()
    notes = " ".join(caught.value.__notes__)
    assert "the last good weights are those that the run began with" in notes
    assert "--from-step" not in notes


def test_a_run_is_slowed_and_its_lines_say_so(make_config):
    options = make_config(num_steps=12, max_kl=1e-6, on_alarm="slow", lr=0.02)
    screen = io.StringIO()
    train(options, Display(Console(file=screen, width=300)))
    lines = lines_of(options)
    # The KL is 0 in the first step; the second step's finding lowers the rate of the third, and so on each fifth.
    passed = [row["step"] for row in lines if "kl" in row["guards"]]
    first = passed[0]
    assert [row["lr"] for row in lines][: first + 1] == [0.02] * (first + 1)
    assert lines[first + 1]["lr"] == 0.01
    assert min(row["lr"] for row in lines) == 0.005
    assert "! learning rate halved, 1 of 3 times: KL" in screen.getvalue()


def test_a_usual_bound_is_shown_and_the_run_goes_on(make_config, tmp_path):
    (tmp_path / "one.py").write_text(
        "def f(completions, **_):\n    return [-1.0 * len(c) for c in completions]\n"
    )
    options = make_config(
        reward=(f"{tmp_path / 'one.py'}:f",), beta=0.0, lr=0.1, num_steps=25, completions_per_prompt=8,
        max_new_tokens=3, checkpoint_every=100,
    )  # fmt: skip
    screen = io.StringIO()
    train(options, Display(Console(file=screen, width=300)))
    lines = lines_of(options)
    assert len(lines) == 25
    assert lines[-1]["duplicate_rate"] > 0.9
    assert "one text" in lines[-1]["guards"]
    assert screen.getvalue().count("of the completions are one text") == len(
        [1 for before, now in itertools.pairwise(lines)
         if "one text" in now["guards"] and "one text" not in before["guards"]]
    )  # fmt: skip


# The first call judges before training. Two steps move weights by about 0.01, the third to infinity.
SCALED = """
calls = 0
def f(completions, **_):
    global calls
    calls += 1
    return [(1e15 if calls > 3 else 1e-32) * (sum(map(ord, c)) % 7) for c in completions]
"""


def test_a_run_that_diverges_names_the_last_good_weights_and_not_damaged_ones(make_config, tmp_path):
    (tmp_path / "scaled.py").write_text(SCALED)
    options = make_config(
        reward=(f"{tmp_path / 'scaled.py'}:f",), lr=1e30, beta=0.0, optimiser="sgd", max_grad_norm=None,
        checkpoint_every=1, preflight=False,
    )  # fmt: skip
    with pytest.raises(DivergedError) as caught:
        train(options, quiet())
    are_finite = [
        all(bool(weight.isfinite().all()) for weight in load_file(folder / "weights.safetensors").values())
        for folder in sorted((options.out / "checkpoints").iterdir())
    ]
    assert are_finite == [True, True, False]  # the third step was taken, and the fourth found out
    notes = " ".join(caught.value.__notes__)
    assert "the last good weights are those after step 2; go back to them, " in notes
    assert f"klimb train --resume {options.out} --from-step 2 --lr" in notes
