"""The report of runs: a table for the terminal, a page of HTML, and its renewal."""

import os
import pathlib
import time
from collections.abc import Sequence

from flaxcls.config.workdir import (
    CHECKPOINTS_FOLDER,
    REPORT_FILE,
    load_stored_config,
    require_different,
)
from flaxcls.reporting import page
from flaxcls.reporting.runs import ReportedRun, load_reported_run
from flaxcls.system.files import require_place, write_atomically
from flaxcls.system.text import table
from flaxcls.system.translation import DEFAULT


def summary(runs: Sequence[ReportedRun]) -> str:
    """Returns a table with a line for each run: network, data, epochs, validation accuracy."""
    rows = [('run', 'network', 'data', 'epochs', 'val/accuracy', 'best')]
    for run in runs:
        reached = '-', '-', '-'
        if run.best:
            last, best = run.evaluations[-1], run.best['val/accuracy']
            reached = f'{last["epoch"]:g}', f'{last["val/accuracy"]:.2%}', f'{best:.2%}'
        rows.append((run.workdir, run.model_name, run.source, *reached))
    return '\n'.join(table(rows, '<<<>>>'))


def write_report(
    workdirs: Sequence[str | os.PathLike],
    out: str | os.PathLike | None = None,
    *,
    earlier: Sequence[ReportedRun] = (),
    reload_after: float | None = None,
    language: str = DEFAULT,
) -> tuple[pathlib.Path, list[ReportedRun]]:
    """Writes the page about runs, be they finished or not; returns the file, and what it shows.

    Args:
      workdirs: of the runs; the others are compared with the first.
      out: the file; None: report.html in the first workdir.
      earlier: what an earlier call has returned for the same workdirs, to predict nothing twice.
      reload_after: seconds after which a browser that shows the page loads it again while a run is
        not finished; None: never.
      language: of the page, one of `list_languages()`.

    Raises:
      UserError: there is no run in a workdir, or no folder for the page.
    """
    workdirs = [os.path.expanduser(workdir) for workdir in workdirs]
    require_different(workdirs)
    for workdir in workdirs:
        load_stored_config(workdir)  # Raises if it is not the workdir of a run.
    out = require_place(out or os.path.join(workdirs[0], REPORT_FILE))
    known = earlier or [None] * len(workdirs)
    runs = [
        load_reported_run(workdir, before) for workdir, before in zip(workdirs, known, strict=True)
    ]
    unfinished = not all(run.finished for run in runs)
    reload_after = reload_after if unfinished else None
    text = page.render(runs, reload_after=reload_after, language=language)
    # Names of files need not be valid text.
    write_atomically(out, text.encode('utf-8', 'backslashreplace'))
    return out, runs


def watch(
    workdirs: Sequence[str], out: str | None, seconds: float, language: str = DEFAULT
) -> None:
    """Writes the page whenever one of the runs has gone on, until all are finished."""
    seen, runs = None, ()
    while True:
        # Taken before the run is read: what is written meanwhile is found the next time.
        stamp = [_stamp(workdir) for workdir in workdirs]
        if stamp != seen:
            path, runs = write_report(
                workdirs, out, earlier=runs, reload_after=seconds, language=language
            )
            print_summary(path, runs)
            seen = stamp
        if all(run.finished for run in runs):
            return
        time.sleep(seconds)


def print_summary(path: pathlib.Path, runs: Sequence[ReportedRun]) -> None:
    """Prints the table of the runs, what the page at `path` leaves out, and why."""
    print(summary(runs))
    for run in runs:
        for reason in dict.fromkeys(run.why.values()):
            print(f'Note: in {run.workdir}, {reason}')
    print(f'wrote {path}; open it in a browser', flush=True)


def _stamp(workdir: str) -> list[tuple[str, int]]:
    """Returns what changes when a run has logged, evaluated or saved something."""
    paths = [
        *pathlib.Path(workdir).glob('*.json*'),
        *pathlib.Path(workdir).glob(f'{CHECKPOINTS_FOLDER}/*'),
    ]
    found = []
    for path in sorted(paths):
        try:
            found.append((path.name, path.stat().st_mtime_ns))
        except FileNotFoundError:  # A checkpoint that has made room for a newer one.
            continue
    return found
