"""Completions to be judged: of models that a person names, with random numbers that are counted.

Axes: B prompts, G completions a prompt.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from klimb.errors import ConfigError, ModelNotFoundError, RunFolderError
from klimb.feedback.records import Candidate
from klimb.judge.config import CompareConfig, JudgeConfig, LabelConfig
from klimb.policy.clock import clock_at, current_moment, reads_clock
from klimb.policy.counted import Stream
from klimb.policy.decoding import TextDecoder
from klimb.policy.distribution import Distribution
from klimb.policy.load import resolve
from klimb.policy.policy import Draw, Policy
from klimb.progress import Say, ignore
from klimb.text import Text
from klimb.train.fingerprint import read_moment
from klimb.train.folder import RunFolder
from klimb.train.lengths import check_lengths
from klimb.train.prompts import PromptRow

_AT_ONCE = 64  # completions drawn together

Watch = Callable[[range], Iterable[int]]
"""Passes places on one by one, and shows how far they are."""


@dataclass(frozen=True)
class NamedModel:
    """A model and what a person calls it.

    Attributes:
        name: As it was named.
        source: The folder, file or hub name that is loaded.
        run: The folder of the run that it is the result of, if any.
    """

    name: str
    source: str
    run: Path | None = None


@dataclass(frozen=True)
class Drawn:
    """Completions of B prompts by one model.

    Attributes:
        candidates: The completions and where they come from, (B, G).
        ids: Token ids of each, its end token included, (B, G).
        rendered: The prompts as the model reads them, (B,).
    """

    candidates: list[list[Candidate]]
    ids: list[list[list[int]]] = field(default_factory=list)
    rendered: list[str] = field(default_factory=list)

    @property
    def num_tokens(self) -> list[list[int]]:
        """Tokens of each completion, (B, G)."""
        return [[len(ids) for ids in group] for group in self.ids]


def find_models(names: Sequence[str]) -> list[NamedModel]:
    """Find models as a person names them, without loading them.

    Raises:
        ModelNotFoundError: There is no such model, or what is there is a part of a run.
        ConfigError: Two names are of the same model.
    """
    models = [_find_model(name) for name in names]
    for first, second in itertools.combinations(models, 2):
        if _place(first.source) == _place(second.source):
            raise ConfigError(f"{first.name} and {second.name} are the same model; name two that differ")
    return models


def draw_completions(
    model: NamedModel,
    rows: Sequence[PromptRow],
    config: JudgeConfig,
    completions_per_prompt: int,
    draw: Draw,
    watch: Watch = iter,
    say: Say = ignore,
) -> Drawn:
    """Load a model and draw completions of each prompt, G of them.

    Args:
        model: The model.
        rows: B prompts.
        config: How completions are drawn.
        completions_per_prompt: G.
        draw: What the random numbers are counted by; its prompts are the indices of the rows, (B,).
        watch: Shows how far it is.
        say: Is told what a person should know.

    Raises:
        ModelNotFoundError: The model cannot be loaded.
        DataError: A prompt does not fit the model.
    """
    policy = Policy.load(
        model.source,
        distribution=Distribution(config.temperature),
        micro_batch_size=_AT_ONCE,
        has_reference=False,
        device=config.device,
        trust_remote_code=config.trust_remote_code,
    )
    policy.model.requires_grad_(False)
    policy.text_decoder = TextDecoder(policy.tokenizer, config.skip_special_tokens, policy.end_ids)
    if reads_clock(policy.tokenizer):
        say(f"  the chat template of {model.name} writes the time: it reads {current_moment()}")
    check_lengths(policy, list(rows), config.max_new_tokens)
    at_once = max(_AT_ONCE // completions_per_prompt, 1)
    drawn = Drawn([])
    for start in watch(range(0, len(rows), at_once)):
        indices, part = draw.prompts[start : start + at_once], rows[start : start + at_once]
        completions = policy.sample(
            [policy.encode(row.prompt, row.columns) for row in part],
            completions_per_prompt,
            max_new_tokens=config.max_new_tokens,
            draw=Draw(draw.seed, draw.step, indices, draw.stream),
        )
        texts = iter(policy.decode(completions, [row.prompt for row in part]))
        ids = iter(completions.rows_of_ids())
        drawn.rendered.extend(policy.render(row.prompt, row.columns) for row in part)
        for index in indices:
            sources = [
                _source(model, config, draw, index, completion)
                for completion in range(completions_per_prompt)
            ]
            drawn.candidates.append([Candidate(next(texts), source) for source in sources])
            drawn.ids.append([next(ids) for _ in sources])
    return drawn


def draw_to_label(
    models: Sequence[NamedModel],
    rows: Sequence[PromptRow],
    config: LabelConfig,
    watch: Watch = iter,
    say: Say = ignore,
) -> tuple[list[tuple[Text, Candidate, Candidate]], int]:
    """Draw the pairs that people are to be asked about.

    Of one model two completions make a pair; of two models one each, drawn with numbers of their own, so that models
    which are alike do not say the same.

    Args:
        models: One or two.
        rows: Prompts.
        config: How completions are drawn, and how many pairs of each prompt.
        watch: Shows how far it is.
        say: Is told what a person should know.

    Returns:
        The pairs, in the order of the prompts, and how many were dropped because both completions were the same text.
    """
    num_pairs, indices = config.num_pairs_per_prompt, list(range(len(rows)))
    each = 2 * num_pairs if len(models) == 1 else num_pairs
    with clock_at(moment_of(models)):
        drawn = [
            draw_completions(
                model, rows, config, each, Draw(config.seed, step, indices, Stream.LABEL), watch, say
            )
            for step, model in enumerate(models)
        ]
    pairs: list[tuple[Text, Candidate, Candidate]] = []
    for index, row in enumerate(rows):
        firsts, seconds = (side.candidates[index] for side in (drawn[0], drawn[-1]))
        if len(models) == 1:
            firsts, seconds = firsts[::2], seconds[1::2]
        pairs += [(row.prompt, first, second) for first, second in zip(firsts, seconds, strict=True)]
    kept = [pair for pair in pairs if pair[1].text != pair[2].text]
    return kept, len(pairs) - len(kept)


def draw_to_compare(
    model: NamedModel,
    rows: Sequence[PromptRow],
    config: CompareConfig,
    watch: Watch = iter,
    say: Say = ignore,
) -> Drawn:
    """Draw the completions by which a model is compared.

    Both models get the same random numbers, those with which `klimb train` judges before and after training.
    """
    draw = Draw(config.seed, 0, list(range(len(rows))), Stream.EVALUATE)
    return draw_completions(model, rows, config, config.completions_per_prompt, draw, watch, say)


def moment_of(models: Sequence[NamedModel]) -> datetime:
    """Find the time that chat templates read: that of the first model that is a run's, or else the present one."""
    recorded = (read_moment(RunFolder(model.run).fingerprints) for model in models if model.run is not None)
    return next(filter(None, recorded), None) or current_moment()


def _find_model(name: str) -> NamedModel:
    path = Path(name).expanduser()
    run = _run_at(path)
    if run is not None:
        if not (run.model / "config.json").is_file():
            raise ModelNotFoundError(
                f"{name}: this run has no model: it was stopped before its end, and its checkpoints are no models"
            )
        return NamedModel(name, str(run.model), path)
    if path.is_dir() and not (path / "config.json").is_file():
        for above in path.parents[:2]:
            if _run_at(above) is not None:
                raise ModelNotFoundError(
                    f"{name}: a part of a run, not a model; name the run's folder instead, {above}"
                )
    return NamedModel(name, resolve(name))


def _run_at(path: Path) -> RunFolder | None:
    try:
        return RunFolder.open(path)
    except RunFolderError:
        return None


def _place(source: str) -> str:
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() else source


def _source(
    model: NamedModel, config: JudgeConfig, draw: Draw, prompt_index: int, completion: int
) -> dict[str, Any]:
    """All that decides a completion, beside its prompt."""
    return {
        "model": model.name,
        "temperature": config.temperature,
        "max_new_tokens": config.max_new_tokens,
        "seed": draw.seed,
        "stream": draw.stream.name.lower(),
        "step": draw.step,
        "prompt_index": prompt_index,
        "draw": completion,
    }
