"""The plots of a sweep: each axis, with a line for every combination of the others."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from flaxcls.sweeping.definition import Cell, SweepRun
from flaxcls.sweeping.results import ACCURACY, SHOWN, TRAIN_LOSS, Metric, Outcome, SweepRow
from flaxcls.system import svg

# Of the page's light style, for files that stand by themselves.
_PAPER = ('#0072b2', '#d55e00', '#00845f', '#b0568c', '#a87400', '#2b8fc9')
_DASHES = ('-', '--', ':', '-.')
# With each dash a mark, since levels that are not numbers have no lines between them: matplotlib's
# name, and a letter like it.
_MARKS = (('o', '●'), ('s', '■'), ('^', '▲'), ('D', '◆'))
_MARGIN = 3  # Percentage points beside what an accuracy can be, for the marks at the border.
_MOST_LINES = svg.NUM_COLOURS * len(_DASHES)


class Line(NamedTuple):
    """Cells that differ in one axis alone, in the order of its levels.

    Attributes:
      name: of the other axes' levels; '' where there are none.
      rows: with results.
    """

    name: str
    rows: Sequence[SweepRow]


class Key(NamedTuple):
    """A line of the legend.

    Attributes:
      name: in the legend.
      colour: its index among those of the page.
      mark: a letter like the marks on the line.
    """

    name: str
    colour: int
    mark: str


def legend_of(lines: Sequence[Line]) -> list[Key]:
    """Returns what a page needs for a legend of its own: [] where there is only one line."""
    return [
        Key(line.name, index % svg.NUM_COLOURS, _mark(index)[1])
        for index, line in enumerate(lines)
        if line.name
    ]


def _mark(index: int) -> tuple[str, str]:
    return _MARKS[index // svg.NUM_COLOURS]


def lines_over(axis: str, rows: Sequence[SweepRow]) -> list[Line]:
    """Returns the lines of the plot over an axis."""
    found: dict[str, list[SweepRow]] = {}
    for row in rows:
        others = [level for name, level in row.cell.levels if name != axis]
        if row.summaries[ACCURACY.key].count:
            found.setdefault(', '.join(others), []).append(row)
    return [Line(name, rows) for name, rows in found.items()]


def draw(
    axis: str,
    levels: Sequence[str],
    rows: Sequence[SweepRow],
    outcomes: dict[SweepRun, Outcome],
    colour: Callable[[int], str] = svg.run_colour,
    *,
    legend: bool = True,
) -> Any | None:
    """Returns a matplotlib Figure of means, deviations and single runs; None: too little for one.

    Args:
      axis: name of the swept axis on the abscissa.
      levels: of that axis, from left to right.
      rows: of the sweep table, from `tabulate`.
      outcomes: of the runs, which become small points.
      colour: of the line of an index.
      legend: whether it is drawn; a page has its own.
    """
    lines = lines_over(axis, rows)
    if not lines or len(lines) > _MOST_LINES:
        return None
    with svg.figure(8.6 if len(levels) * len(lines) < 40 else 11, 3.3) as figure:
        for plot, metric in zip(figure.subplots(1, len(SHOWN)), SHOWN, strict=True):
            for index, line in enumerate(lines):
                _draw_line(plot, metric, line, index, len(lines), axis, levels, outcomes, colour)
            _finish(plot, metric, axis, levels)
        if legend and lines[0].name:
            others = ', '.join(name for name, _ in rows[0].cell.levels if name != axis)
            figure.legend(
                *figure.axes[0].get_legend_handles_labels(),
                title=others,
                loc='outside right upper',
                frameon=False,
            )
        return figure


def _draw_line(plot, metric, line, index, count, axis, levels, outcomes, colour) -> None:
    # Side by side, so that their bars do not cover one another.
    shift = (index - (count - 1) / 2) * min(0.12, 0.6 / count)
    paint = colour(index)
    places = [levels.index(dict(row.cell.levels)[axis]) + shift for row in line.rows]
    scale = 100 if metric.share else 1
    summaries = [row.summaries[metric.key] for row in line.rows]
    for place, row in zip(places, line.rows, strict=True):
        values = _values(metric, row.cell, outcomes)
        plot.plot(
            [place] * len(values),
            [scale * value for value in values],
            linestyle='none',
            marker=_mark(index)[0],
            markersize=4,
            markeredgewidth=0.7,
            fillstyle='none',
            color=paint,
            alpha=0.8,
        )
    plot.errorbar(
        places,
        [scale * summary.mean for summary in summaries],
        [scale * (summary.deviation or 0) for summary in summaries],
        color=paint,
        linestyle=_DASHES[index // svg.NUM_COLOURS] if _is_ordered(levels) else 'none',
        linewidth=1.4,
        elinewidth=1,
        capsize=2.5,
        marker=_mark(index)[0],
        markersize=4.5,
        label=line.name,
    )


def _values(metric: Metric, cell: Cell, outcomes: dict[SweepRun, Outcome]) -> list[float]:
    return [o.values[metric.key] for run, o in outcomes.items() if run.cell == cell and o.finished]


def _is_ordered(levels: Sequence[str]) -> bool:
    """Returns whether a line between levels means something: they are numbers."""
    try:
        [float(level) for level in levels]
    except ValueError:
        return False
    return True


def _finish(plot: Any, metric: Metric, axis: str, levels: Sequence[str]) -> None:
    long = sum(map(len, levels)) > 34
    plot.set_xticks(
        range(len(levels)),
        levels,
        rotation=30 if long else 0,
        ha='right' if long else 'center',
        rotation_mode='anchor' if long else 'default',
    )
    plot.set_xlim(-0.5, len(levels) - 0.5)
    plot.grid(visible=False, axis='x')
    plot.set_xlabel(axis)
    plot.set_ylabel(metric.label)
    if metric is TRAIN_LOSS:
        plot.set_ylim(bottom=0)
    if metric is ACCURACY:  # A deviation may reach further than any value can.
        bottom, top = plot.get_ylim()
        plot.set_ylim(max(bottom, -_MARGIN), min(top, 100 + _MARGIN))


def paper_colour(index: int) -> str:
    """Returns the colour of a line on white paper."""
    return _PAPER[index % len(_PAPER)]
