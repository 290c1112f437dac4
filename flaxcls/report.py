"""Shows what runs have reached: a table here, and all that there is to see on one page of HTML.

  python -m flaxcls.report --workdir=runs/digits_resnet20
  python -m flaxcls.report --workdir=runs/digits_resnet20 --workdir=runs/other --out=two.html
  python -m flaxcls.report --workdir=runs/digits_resnet20 --watch=30    (while it is trained)

The page needs no other file and no network. It has what was run, the curves, the results with their
interval, the confusions, the calibration, the most confident mistakes and the most typical images
with Grad-CAM, and the scores of each class. Several runs are compared with the first, image by
image.
It is written from what is there: before the first checkpoint, or without the data, parts are left
out, and the page says why. With --watch it is written anew whenever a run has gone on, until all
are finished, and the browser that shows it reloads it.
"""

import os
import pathlib
import time
from collections.abc import Sequence

from flaxcls.errors import CommandParser, UserError, run_command
from flaxcls.output_files import require_place
from flaxcls.reporting import page
from flaxcls.reporting.runs import Run, load
from flaxcls.run_setup import load_stored_config, require_different
from flaxcls.writers import write_atomically

_PAGE = 'report.html'


def table(runs: Sequence[Run]) -> str:
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
        lines.append(
            f'{run.workdir:<32} {run.config.model.name:<20} {run.config.data.source:<16} {reached}'
        )
    return '\n'.join(lines)


def write_report(
    workdirs: Sequence[str | os.PathLike],
    out: str | os.PathLike | None = None,
    *,
    earlier: Sequence[Run] = (),
    reload_after: float | None = None,
) -> tuple[pathlib.Path, list[Run]]:
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
    runs = [load(workdir, before) for workdir, before in zip(workdirs, known, strict=True)]
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
            _tell(path, runs)
            seen = stamp
        if all(run.finished for run in runs):
            return
        time.sleep(seconds)


def _tell(path: pathlib.Path, runs: Sequence[Run]) -> None:
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


def main(argv: Sequence[str]) -> None:
    parser = CommandParser('flaxcls.report', __doc__)
    parser.add_argument('--workdir', action='append', required=True, help='of a run; repeatable')
    parser.add_argument('--out', help=f'the page; default: {_PAGE} in the first workdir')
    parser.add_argument(
        '--watch', type=float, metavar='SECONDS', help='between two looks at runs that go on'
    )
    flags = parser.parse_args(argv)
    if flags.watch is not None and not flags.watch > 0:
        raise UserError(f'--watch={flags.watch:g} is no time to wait; give seconds above 0.')
    workdirs = [os.path.expanduser(workdir) for workdir in flags.workdir]
    if flags.watch is None:
        _tell(*write_report(workdirs, flags.out))
    else:
        watch(workdirs, flags.out, flags.watch)


if __name__ == '__main__':
    run_command(main)
