"""What ranks agree on before the first step: slices, the time, and the same options, files and versions."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from klimb.config.train import TrainConfig
from klimb.errors import ConfigError, RunFolderError
from klimb.training.storage.folder import RunFolder
from klimb.world import World, require_admissible


def with_slices(config: TrainConfig, world: World, *, resume: bool) -> TrainConfig:
    """Fix the number of slices: what the options say, else that of the ranks; a resumed run keeps what it began with.

    Raises:
        ConfigError: The ranks cannot share them, or a step's prompts cannot be cut into so many.
    """
    began_with = RunFolder.find(config.out).read_config().get("num_slices") or 1 if resume else world.size
    num_slices = config.num_slices or began_with
    require_admissible(world.size, num_slices, config.prompts_per_step)
    return replace(config, num_slices=num_slices)


def agreed_moment(moment: datetime, world: World) -> datetime:
    """The time of rank 0, which chat templates read on all ranks."""
    return datetime.fromisoformat(world.gather("times", [moment.isoformat()])[0])


def require_alike(config: TrainConfig, content: Mapping[str, Mapping[str, str]], world: World) -> None:
    """Raise unless all ranks have the same options, files, versions and threads.

    Raises:
        ConfigError: A rank differs; the message names it, and what differs.
    """
    options = {name: str(value) for name, value in config.to_dict().items()}
    found = world.gather("content", [{"options": options, **content}])
    for rank, other in enumerate(found):
        if differing := _differing(found[0], other):
            raise ConfigError(
                f"rank {rank} differs from rank 0: {'; '.join(differing)}. Start all ranks with the same options, "
                "files, versions and number of threads"
            )


def require_shared(folder: RunFolder, world: World) -> None:
    """Raise unless all ranks see the folder that rank 0 has made.

    Raises:
        RunFolderError: A rank does not see it.
    """
    world.gather("folder made", [None])
    sees = world.gather("folder seen", [(folder.path / "config.json").is_file()])
    if not all(sees):
        raise RunFolderError(
            f"{folder.path}: rank {sees.index(False)} does not see what rank 0 writes there; choose an --out that all "
            "machines share"
        )


def describe_ranks(config: TrainConfig, world: World) -> dict[str, str]:
    """Say in a line how many ranks and slices there are; nothing of a usual run in one process."""
    num_slices = config.num_slices or 1
    if num_slices == 1:
        return {}
    share = num_slices // world.size
    return {
        "ranks": f"{world.size}, each with {share} of {num_slices} slices of a step's prompts; "
        "the bits are the same on other admissible numbers of ranks"
    }


def _differing(first: Mapping[str, Any], other: Mapping[str, Any]) -> Sequence[str]:
    """Name what is not the same, with its values where it is an option or of the environment."""
    return [
        f"{name} {part}: {_short(other.get(name, {}).get(part))}, not {_short(first.get(name, {}).get(part))}"
        for name in dict.fromkeys([*first, *other])
        for part in dict.fromkeys([*first.get(name, {}), *other.get(name, {})])
        if first.get(name, {}).get(part) != other.get(name, {}).get(part)
    ]


def _short(value: str | None) -> str:
    return "missing" if value is None else value if len(value) < 64 else f"{value[:12]}…"
