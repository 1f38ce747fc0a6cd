"""What a checkpoint gives back, and what it refuses to."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from klimb import KlimbError
from klimb.config.train import TrainConfig
from klimb.errors import RunFolderError
from klimb.policy.policy import Policy
from klimb.reward.reward import WeightedSum
from klimb.training.storage.checkpoint import open_weights
from klimb.training.storage.checkpoints import Checkpoints
from klimb.training.storage.folder import RunFolder
from klimb.training.trainer import Trainer


@pytest.fixture
def config(tmp_path):
    return TrainConfig(model="m", prompts=tmp_path / "p", reward=("vader",), out=tmp_path / "run")


@pytest.fixture
def policy(make_model, bare_tokenizer):
    return Policy(make_model("llama", vocab_size=11), bare_tokenizer)


@pytest.fixture
def folder(config):
    return RunFolder.create(config.out, config.to_dict())


@pytest.fixture
def checkpoints(config, policy, folder):
    """A checkpoint after three updates, which the policy has moved away from."""
    trainer = Trainer.start(config, [], policy, WeightedSum([]))
    checkpoints = Checkpoints(folder, trainer, config)
    trainer.step = trainer.num_updates = policy.num_updates = 3
    checkpoints.save()
    with torch.no_grad():
        for weight in policy.trainable().values():
            weight.add_(1)
    policy.num_updates = 7
    return checkpoints


def copies(policy):
    return {name: weight.detach().clone() for name, weight in policy.trainable().items()}


def test_a_policy_gets_the_weights_of_its_checkpoint_back_in_place(checkpoints, folder, policy):
    places = {name: weight.data_ptr() for name, weight in policy.trainable().items()}
    checkpoints.restore_weights(3)
    stored = load_file(folder.checkpoint(3) / "weights.safetensors")
    assert policy.num_updates == 3
    assert set(stored) == set(policy.trainable())
    for name, weight in policy.trainable().items():
        assert torch.equal(weight, stored[name])
        assert weight.data_ptr() == places[name]
        assert weight.requires_grad


@pytest.mark.usefixtures("checkpoints")
def test_the_tensors_of_a_checkpoint_are_read_by_name(folder):
    tensors, num_updates = open_weights(folder.checkpoint(3), 3)
    assert num_updates == 3
    stored = load_file(folder.checkpoint(3) / "weights.safetensors")
    assert len(tensors) == len(stored)
    assert all(torch.equal(tensors[name], stored[name]) for name in tensors)
    with pytest.raises(KeyError, match="nothing"):
        tensors["nothing"]


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))


def another_beta(file):
    file.write_text(file.read_text().replace('"remembered": {', '"remembered": {"beta": 7, '))


def cut_short(file):
    file.write_bytes(file.read_bytes()[:-5])


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (
            "weights.safetensors",
            flip_a_bit,
            r"weights\.safetensors: cut short or altered since it was written",
        ),
        (
            "weights.safetensors",
            cut_short,
            r"weights\.safetensors: cut short or altered since it was written",
        ),
        ("weights.safetensors", lambda file: file.unlink(), r"weights\.safetensors: missing"),
        ("state.json", lambda file: file.unlink(), r"state\.json: missing"),
        ("state.json", cut_short, r"state\.json: cut short or altered"),
        (
            "state.json",
            lambda file: file.write_text("{}"),
            r"state\.json: altered: expected num_updates",
        ),
        ("state.json", another_beta, r"state\.json: altered since it was written"),
        ("state.json", lambda file: file.write_bytes(b"\xff"), r"state\.json: cut short or altered"),
    ],
)
def test_a_checkpoint_that_is_not_what_was_written_is_refused_and_changes_nothing(
    name, damage, message, checkpoints, folder, policy
):
    damage(folder.checkpoint(3) / name)
    present = copies(policy)
    with pytest.raises(RunFolderError, match=message):
        checkpoints.restore_weights(3)
    assert policy.num_updates == 7
    assert all(torch.equal(weight, present[name]) for name, weight in policy.trainable().items())


def test_a_checkpoint_that_is_not_there_is_named(checkpoints):
    with pytest.raises(
        KlimbError, match=r"step-000004: no such checkpoint; choose one that is in .*checkpoints"
    ):
        checkpoints.restore_weights(4)


def test_a_checkpoint_under_the_name_of_another_is_refused(checkpoints, folder):
    folder.checkpoint(3).rename(folder.checkpoint(5))
    with pytest.raises(KlimbError, match=r"state\.json: the checkpoint is of step 3, not 5"):
        checkpoints.restore_weights(5)


def rewritten(change, file):
    """Other tensors in a checkpoint's file, with a checksum that is right for them."""
    weights = load_file(file)
    change(weights)
    save_file(weights, file)
    from klimb.io.atomic import sha256
    from klimb.training.storage.checkpoint import seal

    state = json.loads((file.parent / "state.json").read_text())
    state["sha256"][file.name] = sha256(file)
    state["seal"] = seal(state)
    (file.parent / "state.json").write_text(json.dumps(state))


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop(NORM), rf"got none of the name {NORM}"),
        (lambda weights: weights.update(extra=torch.zeros(1)), "got one of the name extra"),
        (
            lambda weights: weights.update({NORM: torch.zeros(3)}),
            rf"expected {NORM} as \(16,\) .* got \(3,\)",
        ),
        (
            lambda weights: weights.update({NORM: torch.zeros(16, dtype=torch.float64)}),
            rf"expected {NORM} as \(16,\) of torch.float32, got \(16,\) of torch.float64",
        ),
    ],
)
def test_weights_of_another_policy_are_refused_and_change_nothing(
    change, message, checkpoints, folder, policy
):
    rewritten(change, folder.checkpoint(3) / "weights.safetensors")
    present = copies(policy)
    with pytest.raises(
        RunFolderError, match=rf"weights\.safetensors: not weights of this policy: .*{message}"
    ):
        checkpoints.restore_weights(3)
    assert all(torch.equal(weight, present[name]) for name, weight in policy.trainable().items())


@pytest.mark.usefixtures("checkpoints")
def test_a_checkpoint_of_klimb_0_1_has_as_many_steps_as_updates(folder):
    from klimb.training.storage.checkpoint import seal

    file = folder.checkpoint(3) / "state.json"
    state = json.loads(file.read_text())
    del state["step"]
    file.write_text(json.dumps(state | {"seal": seal(state)}))
    assert folder.open_checkpoint(3).step == 3


@pytest.mark.usefixtures("checkpoints")
def test_a_checkpoint_that_is_removed_leaves_nothing_behind(folder):
    folder.remove_checkpoint(3)
    assert not list(folder.checkpoint(3).parent.iterdir())
