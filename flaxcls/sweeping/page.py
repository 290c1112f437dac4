"""Everything that a sweep leaves beside its runs: tables, plots, and a page that shows them."""

import pathlib
import re
from collections.abc import Mapping, Sequence

from flaxcls.sweeping import figures, tables
from flaxcls.sweeping.costs import Costs
from flaxcls.sweeping.definition import Run, Sweep
from flaxcls.sweeping.results import Outcome, Row, read_outcome, tabulate
from flaxcls.writers import write_atomically


def write_all(
    sweep: Sweep,
    runs: Sequence[Run],
    root: pathlib.Path,
    costs: Costs,
    failed: Mapping[Run, str],
) -> None:
    """Prints the table, and writes it, the plots and the page into the sweep's folder."""
    outcomes = {run: read_outcome(run) for run in runs}
    rows = tabulate(sweep, outcomes, costs)
    root.mkdir(parents=True, exist_ok=True)
    print(f'{tables.as_text(sweep, rows)}\n{tables.reading(sweep, rows)}', flush=True)
    written = {
        'sweep.csv': tables.runs_csv(sweep, outcomes),
        'summary.csv': tables.summary_csv(sweep, rows),
        'summary.md': tables.as_markdown(sweep, rows),
    }
    for name, text in written.items():
        write_atomically(root / name, text)
    _write_plots(sweep, rows, outcomes, root)
    done = sum(outcome.finished for outcome in outcomes.values())
    print(f'{done} of {len(runs)} runs are finished; wrote {root}', flush=True)


def _write_plots(
    sweep: Sweep, rows: Sequence[Row], outcomes: dict[Run, Outcome], root: pathlib.Path
) -> None:
    """Writes AXIS.svg and AXIS.png for each axis, on white."""
    for axis in sweep.axes:
        drawn = figures.draw(sweep, axis, rows, outcomes, figures.paper_colour)
        if drawn is None:
            continue
        name = re.sub(r'[^\w.-]+', '_', axis)
        for kind in ('svg', 'png'):
            drawn.savefig(root / f'{name}.{kind}', facecolor='white', dpi=200)
