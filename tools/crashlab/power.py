"""Cut the power of a simulated disk at many instants, and count what is lost of klimb's promises.

Two promises are tested. A judgement that the feedback server has answered with 200 outlives a loss of power; so does a
checkpoint that a run has written, and at any other instant the run can resume from an older one. `klimb label`, with
raters over HTTP, and `klimb train` run under strace; the folder is built as each cut may leave it, and klimb opens it.
Exit code 1 on any loss.
"""

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tools.crashlab.cut import Tally, cut
from tools.crashlab.programs import record_judging, record_resending, record_training
from tools.crashlab.promises import Checkpoints, Judgements
from tools.crashlab.trace import UnknownCallError


def cut_store(folder: Path, num_judgements: int, prelude: str = "", **plan: int) -> Tally:
    """Put the first promise to the test; 0 judgements are one that is sent twice."""
    root = folder / ("store" if num_judgements else "again")
    root.mkdir(parents=True)
    if num_judgements:
        events, notes = record_judging(root, folder, num_judgements, prelude)
    else:
        events, notes = record_resending(root, folder, prelude)
    tally = cut(root, events, Judgements(notes), **plan)
    if not max(num_judgements, 1) == len(notes) <= tally.num_promised:
        raise UnknownCallError(f"{len(notes)} answers came, and {tally.num_promised} are in the trace")
    return tally


def cut_run(folder: Path, num_steps: int, killed_for: str = "", prelude: str = "", **plan: int) -> Tally:
    """Put the second promise to the test."""
    root = folder / f"training-{killed_for}"
    root.mkdir(parents=True)
    events = record_training(root, folder, num_steps, killed_for, prelude)
    tally = cut(root, events, Checkpoints(), **plan)
    if tally.num_promised <= (0 if killed_for else num_steps):
        raise UnknownCallError(
            f"{num_steps} steps were made, and {tally.num_promised} checkpoints are in the trace"
        )
    return tally


def _show(what: str, tally: Tally) -> int:
    print(
        f"{what}: {tally.num_promised} promised in {tally.num_calls:,} calls; power cut at {tally.num_cuts:,} "
        f"instants, {tally.num_states:,} states of the disk, {tally.num_distinct:,} different; "
        f"lost in {len(tally.losses):,}",
        flush=True,
    )
    for line in tally.losses[:10]:
        print(f"  {line}")
    return len(tally.losses)


def main(arguments: Sequence[str]) -> int:
    """Run the test and return an exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.crashlab power",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", choices=("store", "run"), help="one of the two promises")
    parser.add_argument("--judgements", type=int, default=201, help="a multiple of 3")
    parser.add_argument("--steps", type=int, default=6, help="of the run, each with a checkpoint")
    parser.add_argument(
        "--cuts", type=int, default=600, help="instants for each program; 0: after every call"
    )
    parser.add_argument("--mixtures", type=int, default=4, help="states by chance for each cut")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if shutil.which("strace") is None:
        print("strace is needed: apt-get install strace")
        return 2
    plan = {"num_cuts": options.cuts, "num_mixtures": options.mixtures, "seed": options.seed}
    num_losses = 0
    with tempfile.TemporaryDirectory(prefix="klimb-power-") as name:
        if options.only != "run":
            num_losses += _show("judgements", cut_store(Path(name), options.judgements, **plan))
            num_losses += _show("a judgement sent again after a kill", cut_store(Path(name), 0, **plan))
        for killed_for in ("", "run", f"step-{options.steps:06d}") if options.only != "store" else ():
            what = f"checkpoints, killed for {killed_for}" if killed_for else "checkpoints"
            num_losses += _show(what, cut_run(Path(name), options.steps, killed_for, **plan))
    print("nothing was lost" if num_losses == 0 else "SOMETHING WAS LOST")
    return 1 if num_losses else 0
