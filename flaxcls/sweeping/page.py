"""Everything that a sweep leaves beside its runs: tables, plots, and a page that shows them."""

import datetime
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

import flaxcls
from flaxcls.reporting.page import environment, percent
from flaxcls.sweeping import figures, tables
from flaxcls.sweeping.costs import Costs
from flaxcls.sweeping.definition import Options, Sweep, SweepRun, axis_file
from flaxcls.sweeping.results import (
    ACCURACY,
    SHOWN,
    Outcome,
    SweepRow,
    describe_state,
    read_outcomes,
    tabulate,
)
from flaxcls.system import svg as svg_lib
from flaxcls.system.files import write_atomically

PAGE = 'sweep.html'


def write_all(
    sweep: Sweep,
    runs: Sequence[SweepRun],
    root: pathlib.Path,
    costs: Costs,
    failed: Mapping[SweepRun, str],
    overrides: Options | None = None,
) -> None:
    """Prints the table, and writes it, the plots and the page into the sweep's folder.

    Args:
      sweep: as its file defines it.
      runs: every run of the sweep, finished or not.
      root: folder of the sweep; the page is written there.
      costs: parameters, FLOPs and steps of each cell.
      failed: {run: sentence} of those that have just failed.
      overrides: of all runs, besides the sweep's own.
    """
    outcomes = read_outcomes(runs)
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
    text = render(sweep, rows, outcomes, sweep.common_options(overrides), failed)
    # Names of files need not be valid text.
    write_atomically(root / PAGE, text.encode('utf-8', 'backslashreplace'))
    done = sum(outcome.finished for outcome in outcomes.values())
    print(f'{done} of {len(runs)} runs are finished; wrote {root / PAGE}', flush=True)


def _write_plots(
    sweep: Sweep, rows: Sequence[SweepRow], outcomes: dict[SweepRun, Outcome], root: pathlib.Path
) -> None:
    """Writes AXIS.svg and AXIS.png for each axis, on white."""
    for axis, levels in sweep.axes.items():
        drawn = figures.draw(axis, list(levels), rows, outcomes, figures.paper_colour)
        if drawn is None:
            continue
        for kind in ('svg', 'png'):
            svg_lib.save(drawn, root / f'{axis_file(axis)}.{kind}')


class AxisPlot(NamedTuple):
    """A plot of the page.

    Attributes:
      title: name of the swept axis.
      svg: the element; None: there is nothing to draw.
      keys: of the legend; empty where there is one line.
      why: a sentence that says why there is none.
    """

    title: str
    svg: Markup | None
    keys: Sequence[figures.Key]
    why: str = ''


class Reached(NamedTuple):
    """A cell and its mean accuracy, for people."""

    name: str
    accuracy: str


def render(
    sweep: Sweep,
    rows: Sequence[SweepRow],
    outcomes: dict[SweepRun, Outcome],
    common: Options,
    failed: Mapping[SweepRun, str],
) -> str:
    """Returns the page as a document of HTML that needs no other file."""
    reached = [row for row in rows if row.summaries[ACCURACY.key].count]
    mean = lambda row: row.summaries[ACCURACY.key].mean  # noqa: E731
    bases = [row for row in reached if row.base]
    return environment().get_template('sweep.html').render(
        sweep=sweep,
        paragraphs=[' '.join(part.split()) for part in sweep.text.split('\n\n')],
        header=tables.header(sweep),
        rows=[tables.cells(row) for row in rows],
        shown=SHOWN,
        reading=tables.reading(sweep, rows),
        best=_reached(max(reached, key=mean)) if reached else None,
        base=_reached(bases[0]) if len(bases) == 1 else None,
        base_name=tables.describe_base(sweep),
        plots=[_plot(sweep, index, rows, outcomes) for index in range(len(sweep.axes))],
        common=common,
        runs=outcomes,
        finished=sum(outcome.finished for outcome in outcomes.values()),
        states={run: describe_state(outcome) for run, outcome in outcomes.items()},
        failures=failed,
        seconds=sum(outcome.seconds or 0 for outcome in outcomes.values()),
        made=datetime.datetime.now(datetime.UTC),
        version=flaxcls.__version__,
    )  # fmt: skip


def _reached(row: SweepRow) -> Reached:
    return Reached(str(row.cell), percent(row.summaries[ACCURACY.key].mean))


def _plot(
    sweep: Sweep, index: int, rows: Sequence[SweepRow], outcomes: dict[SweepRun, Outcome]
) -> AxisPlot:
    axis = list(sweep.axes)[index]
    lines = figures.lines_over(axis, rows)
    drawn = figures.draw(axis, list(sweep.axes[axis]), rows, outcomes, legend=False)
    if drawn is None:
        why = 'The combinations of the other axes are too many for lines.'
        return AxisPlot(axis, None, [], why if lines else 'Nothing is finished yet.')
    element = svg_lib.render(drawn, f'axis-{index}', 'Accuracy and training loss over the levels.')
    return AxisPlot(axis, Markup(element), figures.legend_of(lines))
