"""Write docs/objectives.md: its table of presets is made from the records, so that the two cannot differ.

Run by `make format`; the tests compare.
"""

import importlib.util
import math
import sys
from pathlib import Path
from typing import Any

from klimb.core.objective import Objective
from klimb.core.presets import PRESETS

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "objectives.md"
START, END = "<!-- presets: made by tools/objectives.py -->", "<!-- end of presets -->"


def table() -> str:
    """Make the table."""
    lines = [
        "| preset | KL | advantage | ratio | trust region | aggregation | corrections, masks | updates | reproduces "
        "| checked |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    cases = _checked_cases()
    for name, preset in PRESETS.items():
        cells = [
            f"`{name}`",
            _kl(preset),
            _advantage(preset),
            preset.ratio,
            _region(preset),
            preset.aggregation,
            _masks(preset),
            f"{preset.num_epochs} × {preset.num_minibatches}",
            preset.reproduces,
            ", ".join(by for by, kinds in cases.items() if _kind(preset) in kinds),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def render() -> str:
    """Make the page: the present one with its table made again."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n\n{table()}\n\n{END}{after}"


def _checked_cases() -> dict[str, set[tuple[str, ...]]]:
    """Find which kinds of score weights the tests check, by what they are checked against."""
    files = {
        name: ROOT / "tests" / name
        for name in ("core/test_score_weights.py", "parity/test_trl.py", "parity/test_peers.py")
    }
    hand, trl, peers = (_load(file) for file in files.values())
    cases = {"by hand": hand.HAND, "TRL": trl.CASES, "OpenRLHF": peers.OPENRLHF, "verl": peers.VERL}
    return {by: {_kind(objective) for objective, _ in found.values()} for by, found in cases.items()}


def _load(file: Path) -> Any:
    """Load a module of the tests, which find their helpers in `tests/`."""
    if str(ROOT / "tests") not in sys.path:
        sys.path.append(str(ROOT / "tests"))
    spec = importlib.util.spec_from_file_location(f"_objectives_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _kind(objective: Objective) -> tuple[str, ...]:
    return objective.ratio, str(objective.trust_region), objective.aggregation


def _kl(preset: Objective) -> str:
    parts: list[str] = []
    if preset.beta > 0:
        credit = f", {preset.kl_credit}" if preset.kl_place == "reward" else ""
        parts.append(f"{preset.kl_place}{credit}, {preset.kl_estimator}, {preset.beta:g}")
    if preset.sampler_beta > 0:
        parts.append(f"to the sampler, k2, {preset.sampler_beta:g}")
    return "; ".join(parts) or "–"


def _advantage(preset: Objective) -> str:
    parts: list[str] = [preset.baseline]
    if preset.scale == "group_mean":
        parts.append("/ group_mean")
    elif preset.scale != "none":
        parts.append(f"/ {preset.scale} (ddof {preset.scale_ddof}, ε {preset.scale_epsilon:g})")
    if preset.baseline == "value":
        parts.append(f"(γ {preset.discount:g}, λ {preset.trace_decay:g})")
    if preset.whiten_tokens:
        parts.append(f"then whitened over tokens (ddof {preset.whiten_ddof})")
    return " ".join(parts)


def _region(preset: Objective) -> str:
    region = preset.trust_region
    assert isinstance(region, str)
    numbers = [
        f"{preset.numbers[name]:g}" for name in preset.region.numbers if preset.numbers[name] < math.inf
    ]
    return f"{region} {', '.join(numbers)}".strip() if preset.ratio != "none" else "–"


def _masks(preset: Objective) -> str:
    parts: list[str] = []
    if preset.sampler_correction != "none":
        bounds = f"{preset.correction_low:g} to {preset.correction_high:g}"
        parts.append(f"{preset.correction_level} {preset.sampler_correction} {bounds}")
    parts += [name for name in ("mask_truncated", "drop_uniform_groups") if getattr(preset, name)]
    if preset.max_drift < math.inf:
        parts.append(f"max_drift {preset.max_drift:g}")
    if preset.overlong_buffer > 0:
        parts.append(f"overlong penalty over {preset.overlong_buffer:g} of the limit")
    return ", ".join(parts) or "–"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
