"""Completions to be judged: of models that a person names, with random numbers that are counted.

Axes: B prompts, G completions per prompt.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from klimb.config.pairwise import CompareConfig, JudgeConfig, LabelConfig
from klimb.core.rng import Stream
from klimb.data.prompts import PromptRow
from klimb.errors import ConfigError, ModelNotFoundError, RunFolderError
from klimb.feedback.records import Candidate
from klimb.io.progress import Say, ignore
from klimb.io.show import Text
from klimb.model.clock import clock_at, current_moment, reads_clock
from klimb.model.load import resolve
from klimb.policy.distribution import SamplingDistribution
from klimb.policy.engine.decoding import TextDecoder
from klimb.policy.engine.stopping import StopRules
from klimb.policy.lengths import check_lengths
from klimb.policy.policy import Policy, SampleKey
from klimb.training.storage.fingerprint import read_moment
from klimb.training.storage.folder import RunFolder

_AT_ONCE = 64  # completions drawn together
_FIRST = 8  # of the first part of what people label

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
class LabelPart:
    """Some prompts whose completions are drawn together, and the pairs that are made of them.

    Attributes:
        indices: Of the prompts.
        pairs: The pairs, in the order of the prompts.
        num_same: Pairs that were dropped because both completions were the same text.
    """

    indices: list[int]
    pairs: list[tuple[Text, Candidate, Candidate]]
    num_same: int


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
    key: SampleKey,
    watch: Watch = iter,
    say: Say = ignore,
) -> Drawn:
    """Load a model and draw completions of each prompt, G of them.

    Args:
        model: The model.
        rows: B prompts.
        config: How completions are drawn.
        completions_per_prompt: G.
        key: Key of the counter-based RNG; its prompts are the indices of the rows, (B,).
        watch: Shows how far it is.
        say: Receives what a person should know.

    Raises:
        ModelNotFoundError: The model cannot be loaded.
        DataError: A prompt does not fit the model.
    """
    policy = _load(model, rows, config, say)
    at_once = max(_AT_ONCE // completions_per_prompt, 1)
    drawn = Drawn([])
    for start in watch(range(0, len(rows), at_once)):
        indices, part = key.prompts[start : start + at_once], rows[start : start + at_once]
        part_key = SampleKey(key.seed, key.step, indices, key.stream)
        more = _draw_part(policy, model, part, config, completions_per_prompt, part_key)
        drawn.candidates.extend(more.candidates)
        drawn.ids.extend(more.ids)
        drawn.rendered.extend(more.rendered)
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
        say: Receives what a person should know.

    Returns:
        The pairs, in the order of the prompts, and how many were dropped because both completions were the same text.
    """
    places = list(label_parts(models, len(rows), config))
    with clock_at(moment_of(models)):
        parts = list(draw_label_parts(models, rows, config, places, watch, say))
    return [pair for part in parts for pair in part.pairs], sum(part.num_same for part in parts)


def label_parts(models: Sequence[NamedModel], num_prompts: int, config: LabelConfig) -> list[list[int]]:
    """Divide prompts, by their indices, into those whose completions are drawn together.

    The first part is small, so that people can begin, and each is twice as large as the one before, up to a limit.
    """
    each = _num_each(models, config)
    most, size = max(_AT_ONCE // each, 1), max(min(_FIRST, _AT_ONCE) // each, 1)
    parts: list[list[int]] = []
    start = 0
    while start < num_prompts:
        parts.append(list(range(start, min(start + size, num_prompts))))
        start, size = start + size, min(2 * size, most)
    return parts


def draw_label_parts(
    models: Sequence[NamedModel],
    rows: Sequence[PromptRow],
    config: LabelConfig,
    parts: Sequence[list[int]],
    watch: Watch = iter,
    say: Say = ignore,
) -> Iterator[LabelPart]:
    """Draw the pairs of some parts, one after the other; `draw_to_label` gives those of all.

    A part's pairs are the same whichever others are drawn. One model is loaded at a time: of two the first draws for
    all parts, before the second completes them one by one.

    Args:
        models: One or two.
        rows: All prompts.
        config: How completions are drawn, and how many pairs of each prompt.
        parts: What `label_parts` returned, or some of it, in the same order.
        watch: Shows how far it is.
        say: Receives what a person should know.

    Raises:
        KlimbError: A model cannot be loaded, or a prompt does not fit it.
    """
    each = _num_each(models, config)

    def draw_all(step: int) -> Iterator[Drawn]:
        policy = _load(models[step], rows, config, say)
        places = iter(watch(range(sum(map(len, parts)))))
        for indices in parts:
            next(places)
            key = SampleKey(config.seed, step, indices, Stream.LABEL)
            yield _draw_part(policy, models[step], [rows[index] for index in indices], config, each, key)
            for _ in itertools.islice(places, len(indices) - 1):  # its other prompts are done, too
                pass
        for _ in places:
            pass

    if len(models) == 1:
        for indices, drawn in zip(parts, draw_all(0), strict=True):
            groups = [(group[::2], group[1::2]) for group in drawn.candidates]
            yield _label_part(indices, rows, groups)
    else:
        firsts = list(draw_all(0))
        for indices, first, second in zip(parts, firsts, draw_all(1), strict=True):
            yield _label_part(indices, rows, list(zip(first.candidates, second.candidates, strict=True)))


def _num_each(models: Sequence[NamedModel], config: LabelConfig) -> int:
    """Completions of a prompt by each model."""
    return 2 * config.num_pairs_per_prompt if len(models) == 1 else config.num_pairs_per_prompt


def _label_part(
    indices: list[int],
    rows: Sequence[PromptRow],
    groups: Sequence[tuple[list[Candidate], list[Candidate]]],
) -> LabelPart:
    pairs = [
        (rows[index].prompt, first, second)
        for index, (firsts, seconds) in zip(indices, groups, strict=True)
        for first, second in zip(firsts, seconds, strict=True)
    ]
    kept = [pair for pair in pairs if pair[1].text != pair[2].text]
    return LabelPart(indices, kept, len(pairs) - len(kept))


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
    key = SampleKey(config.seed, 0, list(range(len(rows))), Stream.EVALUATE)
    return draw_completions(model, rows, config, config.completions_per_prompt, key, watch, say)


def moment_of(models: Sequence[NamedModel]) -> datetime:
    """Find the time that chat templates read: that of the first model that is a run's, or else the present one."""
    recorded = (read_moment(RunFolder(model.run).fingerprints) for model in models if model.run is not None)
    return next(filter(None, recorded), None) or current_moment()


def _load(model: NamedModel, rows: Sequence[PromptRow], config: JudgeConfig, say: Say) -> Policy:
    """Load a model to draw from, and see that every prompt fits it."""
    policy = Policy.load(
        model.source,
        distribution=SamplingDistribution.of(config, config.temperature),
        micro_batch_size=_AT_ONCE,
        has_reference=False,
        device=config.device,
        trust_remote_code=config.trust_remote_code,
    )
    policy.model.requires_grad_(False)
    policy.text_decoder = TextDecoder(policy.tokenizer, config.skip_special_tokens, policy.end_ids)
    policy.stop_rules, policy.keeps_supports = StopRules(config.min_new_tokens, config.stop), False
    if reads_clock(policy.tokenizer):
        say(f"  the chat template of {model.name} writes the time: it reads {current_moment()}")
    check_lengths(policy, list(rows), config.max_new_tokens)
    return policy


def _draw_part(
    policy: Policy,
    model: NamedModel,
    rows: Sequence[PromptRow],
    config: JudgeConfig,
    completions_per_prompt: int,
    key: SampleKey,
) -> Drawn:
    """Draw completions of some prompts, all together."""
    completions = policy.sample(
        [policy.encode(row.prompt, row.columns) for row in rows],
        completions_per_prompt,
        max_new_tokens=config.max_new_tokens,
        key=key,
    )
    texts = iter(policy.decode(completions, [row.prompt for row in rows]))
    ids = iter(completions.rows_of_ids())
    drawn = Drawn([], rendered=[policy.render(row.prompt, row.columns) for row in rows])
    for index in key.prompts:
        sources = [
            _source(model, config, key, index, completion) for completion in range(completions_per_prompt)
        ]
        drawn.candidates.append([Candidate(next(texts), source) for source in sources])
        drawn.ids.append([next(ids) for _ in sources])
    return drawn


def _find_model(name: str) -> NamedModel:
    path = Path(name).expanduser()
    run = _run_at(path)
    if run is not None:
        if not (run.model / "config.json").is_file():
            raise ModelNotFoundError(
                f"{name}: this run has no model: it was stopped before its end, and its checkpoints "
                "are not models; resume it"
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
    model: NamedModel, config: JudgeConfig, key: SampleKey, prompt_index: int, completion: int
) -> dict[str, Any]:
    """All that decides a completion, beside its prompt."""
    return {
        "model": model.name,
        "temperature": config.temperature,
        **config.decoding,
        "max_new_tokens": config.max_new_tokens,
        "seed": key.seed,
        "stream": key.stream.name.lower(),
        "step": key.step,
        "prompt_index": prompt_index,
        "draw": completion,
    }
