"""The report of runs: a table for the terminal, a page of HTML, and its renewal."""

import os
import pathlib
import time
from collections.abc import Sequence

from flaxcls.reporting import page
from flaxcls.reporting.runs import ReportedRun, load_reported_run
from flaxcls.system.files import require_place, write_atomically
from flaxcls.training.workdir import load_stored_config, require_different

_PAGE = 'report.html'


def table(runs: Sequence[ReportedRun]) -> str:
    """Returns a table with a line for each run: network, data, epochs, validation accuracy."""
    lines = [
        f'{"run":<32} {"network":<20} {"data":<16} {"epochs":>6} {"val/accuracy":>13} {"best":>8}'
    ]
    for run in runs:
        reached = f'{"-":>6} {"-":>13} {"-":>8}'
        if run.best:
            last = run.evaluations[-1]
            reached = (
                f'{last["epoch"]:>6g} {last["val/accuracy"]:>13.2%} '
                f'{run.best["val/accuracy"]:>8.2%}'
            )
        lines.append(f'{run.workdir:<32} {run.model_name:<20} {run.source:<16} {reached}')
    return '\n'.join(lines)


def write_report(
    workdirs: Sequence[str | os.PathLike],
    out: str | os.PathLike | None = None,
    *,
    earlier: Sequence[ReportedRun] = (),
    reload_after: float | None = None,
) -> tuple[pathlib.Path, list[ReportedRun]]:
    """Writes the page about runs, be they finished or not; returns the file, and what it shows.

    Args:
      workdirs: of the runs; the others are compared with the first.
      out: the file; None: report.html in the first workdir.
      earlier: what an earlier call has returned for the same workdirs, to predict nothing twice.
      reload_after: seconds after which a browser that shows the page loads it again while a run is
        not finished; None: never.

    Raises:
      UserError: there is no run in a workdir, or no folder for the page.
    """
    workdirs = [os.path.expanduser(workdir) for workdir in workdirs]
    require_different(workdirs)
    for workdir in workdirs:
        load_stored_config(workdir)  # A workdir that is none is told as such.
    out = require_place(out or os.path.join(workdirs[0], _PAGE))
    known = earlier or [None] * len(workdirs)
    runs = [
        load_reported_run(workdir, before) for workdir, before in zip(workdirs, known, strict=True)
    ]
    going_on = not all(run.finished for run in runs)
    text = page.render(runs, reload_after=reload_after if going_on else None)
    # Names of files need not be valid text.
    write_atomically(out, text.encode('utf-8', 'backslashreplace'))
    return out, runs


def watch(workdirs: Sequence[str], out: str | None, seconds: float) -> None:
    """Writes the page whenever one of the runs has gone on, until all are finished."""
    seen, runs = None, ()
    while True:
        # Taken before the run is read: what is written meanwhile is found the next time.
        stamp = [_stamp(workdir) for workdir in workdirs]
        if stamp != seen:
            path, runs = write_report(workdirs, out, earlier=runs, reload_after=seconds)
            print_summary(path, runs)
            seen = stamp
        if all(run.finished for run in runs):
            return
        time.sleep(seconds)


def print_summary(path: pathlib.Path, runs: Sequence[ReportedRun]) -> None:
    """Prints the table of the runs, what the page at `path` leaves out, and why."""
    print(table(runs))
    for run in runs:
        for reason in dict.fromkeys(run.why.values()):
            print(f'Note: in {run.workdir}, {reason}')
    print(f'wrote {path}; open it in a browser', flush=True)


def _stamp(workdir: str) -> list[tuple[str, int]]:
    """Returns what changes when a run has logged, evaluated or saved something."""
    paths = [*pathlib.Path(workdir).glob('*.json*'), *pathlib.Path(workdir).glob('checkpoints/*')]
    found = []
    for path in sorted(paths):
        try:
            found.append((path.name, path.stat().st_mtime_ns))
        except FileNotFoundError:  # A checkpoint that has made room for a newer one.
            continue
    return found
