"""`klimb compare`: two models answer the same prompts; rewards or people judge which answers are better.

Axes: B prompts, G comparisons a prompt.
"""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from klimb.config.pairwise import PEOPLE, CompareConfig
from klimb.data.prompts import PromptRow, read_prompts
from klimb.errors import DataError, RewardError
from klimb.feedback.rater_report import RaterReport
from klimb.io.atomic import make_folder, write_file
from klimb.io.progress import Progress, Say, tell
from klimb.model import chat
from klimb.model.clock import clock_at
from klimb.pairwise.candidates import Drawn, NamedModel, draw_to_compare, find_models, moment_of
from klimb.pairwise.console import watched
from klimb.pairwise.report import draw_report
from klimb.pairwise.results import ComparisonResult, Example, Side
from klimb.pairwise.tally import Opinions, opinions_of_scores, tally
from klimb.reward.load import NO_FUNCTIONS, Functions, load_rewards, named
from klimb.reward.reward import Batch, WeightedSum
from klimb.training.evaluate.estimates import short_name
from klimb.training.evaluate.summary import show_prompt

if TYPE_CHECKING:
    from klimb.pairwise.serving import Serve  # rewards need no server

_AT_ONCE = 64  # completions that a reward is given together
_MOST_EXAMPLES = 64


def compare(
    config: CompareConfig,
    say: Say = tell,
    serve: "Serve | None" = None,
    *,
    functions: Functions = NO_FUNCTIONS,
) -> ComparisonResult:
    """Compare two models.

    Both answer every prompt with the same random numbers, and the first completion of one is compared with the first
    of the other, and so on. Everything that can be wrong with options and files is found before anything is sampled.

    Args:
        config: The options.
        say: Takes lines of progress.
        serve: Serves the page on which people judge; in the browser where None.
        functions: Judges that were given as objects, by the names that `config` has for them.

    Returns:
        What came of it, which is written to the page and the file beside it.

    Raises:
        KlimbError: Something is wrong with an option, a file, a model, a reward or the store, or nobody judged.
    """
    if PEOPLE not in config.by:
        return _compare(config, say, serve, functions)
    from klimb.pairwise.serving import claimed_to_label

    make_folder(config.out.parent)
    with claimed_to_label(_store_of(config)):
        return _compare(config, say, serve, functions)


def _compare(
    config: CompareConfig, say: Say, serve: "Serve | None", functions: Functions
) -> ComparisonResult:
    rows = read_prompts(config.prompts, config.prompt_column, config.system_prompt)
    models = find_models((config.model_a, config.model_b))
    make_folder(config.out.parent)
    reward = None
    if config.rewards:
        loaded = load_rewards(
            [named(name, functions) for name in config.rewards],
            device=config.device,
            trust_remote_code=config.trust_remote_code,
        )
        reward = WeightedSum([], judges=loaded.rewards)  # each is asked and checked, nothing is added up
        _check_prompts(reward, rows)
    if PEOPLE in config.by:
        _check_store(config)
    opinions: dict[str, Opinions] = {}
    with clock_at(moment_of(models)):  # both models and the rewards read the same time
        drawn = _draw(models, rows, config, say)
        if reward is not None:
            opinions |= _ask_rewards(reward, rows, drawn, config.tie_margin, say)
    if PEOPLE in config.by:
        opinions[PEOPLE] = _ask_people(rows, drawn, config, say, serve)
    result = _result(rows, drawn, [opinions[judge] for judge in config.by], config)
    if PEOPLE in config.by:
        result = replace(result, raters=_assess_raters(config))
    write_file(result.page, draw_report(result, config))
    write_file(result.data, _as_json(result, rows, drawn, opinions, config))
    return result


def _check_prompts(reward: WeightedSum, rows: Sequence[PromptRow]) -> None:
    """Find a prompt that a reward cannot read before anything is sampled."""
    for row in rows:
        try:
            reward.check_prompt(row.prompt, row.columns)
        except (DataError, RewardError) as error:
            raise DataError(f"{row.place}: {error}") from error


def _store_of(config: CompareConfig) -> str | Path:
    return config.store or config.out.with_suffix(".db")


def _check_store(config: CompareConfig) -> None:
    """Find out what is wrong with the store before anything is sampled."""
    from klimb.feedback.store.store import Store

    Store.open(_store_of(config)).close()


def _draw(
    models: Sequence[NamedModel], rows: list[PromptRow], config: CompareConfig, say: Say
) -> tuple[Drawn, Drawn]:
    say(
        f"Sampling {config.completions_per_prompt} completions for each of {len(rows):,} prompts, "
        f"temperature {config.temperature:g}{config.describe_decoding()}, up to {config.max_new_tokens} tokens each"
    )
    drawn: list[Drawn] = []
    for letter, model in zip("AB", models, strict=True):
        say(f"  {letter} from {model.name} …")
        drawn.append(draw_to_compare(model, rows, config, watched, say))
    return drawn[0], drawn[1]


def _ask_people(
    rows: list[PromptRow], drawn: tuple[Drawn, Drawn], config: CompareConfig, say: Say, serve: "Serve | None"
) -> Opinions:
    from klimb.feedback.server.serve import serve as serve_in_browser  # rewards need no server
    from klimb.feedback.store.store import Store
    from klimb.pairwise.people import ask_people

    with Store.open(_store_of(config)) as store:
        return ask_people(store, rows, drawn, config, say, serve or serve_in_browser)


def _assess_raters(config: CompareConfig) -> RaterReport:
    """Say what looks wrong with the answers of those who judged, of other pairs in the store too."""
    from klimb.feedback.raters import account_for, opinions_of
    from klimb.feedback.store.store import Store

    with Store.open(_store_of(config)) as store:
        return account_for(opinions_of(store.judgements()))


def _ask_rewards(
    reward: WeightedSum, rows: list[PromptRow], drawn: tuple[Drawn, Drawn], tie_margin: float, say: Say
) -> dict[str, Opinions]:
    scores_a, scores_b = (_scores(reward, rows, side, say) for side in drawn)
    return {
        judge.name: opinions_of_scores(judge.name, scores_a[judge.name], scores_b[judge.name], tie_margin)
        for judge in reward.judges
    }


def _scores(
    reward: WeightedSum, rows: list[PromptRow], drawn: Drawn, say: Say
) -> dict[str, list[list[float | None]]]:
    """What each reward gives to each completion, (B, G)."""
    owners = [row for row, side in zip(rows, drawn.candidates, strict=True) for _ in side]
    texts = [candidate.text for side in drawn.candidates for candidate in side]
    ids = [row for group in drawn.ids for row in group]
    rendered = [text for text, side in zip(drawn.rendered, drawn.candidates, strict=True) for _ in side]
    flat: dict[str, list[float | None]] = {judge.name: [] for judge in reward.judges}
    progress = Progress("scoring", len(texts), "completions", say)
    for start in range(0, len(texts), _AT_ONCE):
        part = owners[start : start + _AT_ONCE]
        columns = {name: [row.columns[name] for row in part] for name in part[0].columns}
        of = slice(start, start + _AT_ONCE)
        opened = [chat.opening(row.prompt, text) for row, text in zip(part, rendered[of], strict=True)]
        batch = Batch(
            [row.prompt for row in part],
            texts[of],
            columns,
            rendered=rendered[of],
            completion_ids=ids[of],
            openings=opened if any(opened) else None,
        )
        for name, scores in reward(batch).complete().parts.items():
            flat[name] += scores
        progress.advance(len(part))
    group = len(drawn.candidates[0])
    return {
        name: [scores[start : start + group] for start in range(0, len(scores), group)]
        for name, scores in flat.items()
    }


def _result(
    rows: list[PromptRow], drawn: tuple[Drawn, Drawn], opinions: list[Opinions], config: CompareConfig
) -> ComparisonResult:
    lengths = [np.array(side.num_tokens, dtype=np.float64) for side in drawn]
    tallies = [tally(said, lengths[0], lengths[1], config.seed) for said in opinions]
    if not any(judged.num_comparisons for judged in tallies):
        what_next = (
            f"the pairs are kept in {_store_of(config)}: run the same command again to judge them"
            if PEOPLE in config.by
            else "no reward had an opinion on both completions of a pair"
        )
        raise DataError(f"nothing was judged, so there is no result; {what_next}")
    names = [short_name(config.model_a), short_name(config.model_b)]
    if names[0] == names[1]:
        names = [config.model_a, config.model_b]
    sides = [
        _side(name, model, side)
        for name, model, side in zip(names, (config.model_a, config.model_b), drawn, strict=True)
    ]
    return ComparisonResult(
        a=sides[0],
        b=sides[1],
        num_prompts=len(rows),
        num_same=sum(
            a.text == b.text
            for sides_of_prompt in zip(*(side.candidates for side in drawn), strict=True)
            for a, b in zip(*sides_of_prompt, strict=True)
        ),
        tallies=tallies,
        examples=[
            Example(
                prompt=show_prompt(row.prompt),
                a=drawn[0].candidates[index][0].text,
                b=drawn[1].candidates[index][0].text,
                said={said.judge: said.said(index, 0) for said in opinions},
            )
            for index, row in enumerate(rows[:_MOST_EXAMPLES])
        ],
        page=config.out,
        data=config.out.with_suffix(".json"),
    )


def _side(name: str, model: str, drawn: Drawn) -> Side:
    texts = [candidate.text for side in drawn.candidates for candidate in side]
    return Side(
        name=name,
        model=model,
        mean_tokens=statistics.fmean(count for side in drawn.num_tokens for count in side),
        mean_characters=statistics.fmean(map(len, texts)),
        num_empty=sum(not text.strip() for text in texts),
    )


def _as_json(
    result: ComparisonResult,
    rows: list[PromptRow],
    drawn: tuple[Drawn, Drawn],
    opinions: dict[str, Opinions],
    config: CompareConfig,
) -> str:
    """The numbers, and every comparison with what each judge said of it: from 1 for A to −1 for B."""
    outcomes = {
        judge: np.where(said.has_opinion, said.outcomes, math.nan).tolist()
        for judge, said in opinions.items()
    }
    comparisons = [
        {
            "prompt": row.prompt,
            "a": a.text,
            "b": b.text,
            "outcomes": {
                judge: None if math.isnan(values[index][place]) else values[index][place]
                for judge, values in outcomes.items()
            },
        }
        for index, row in enumerate(rows)
        for place, (a, b) in enumerate(zip(*(side.candidates[index] for side in drawn), strict=True))
    ]
    content = {
        "a": asdict(result.a),
        "b": asdict(result.b),
        "num_prompts": result.num_prompts,
        "num_same": result.num_same,
        "judges": [judged.to_dict() for judged in result.tallies],
        "verdicts": result.verdicts,
        "raters": result.raters.as_dict(),
        "options": config.to_dict(),
        "comparisons": comparisons,
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
