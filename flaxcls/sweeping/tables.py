"""The results of a sweep as text, Markdown and CSV."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flaxcls.sweeping.definition import Sweep, SweepRun
from flaxcls.sweeping.results import (
    ACCURACY,
    METRICS,
    SHOWN,
    Difference,
    Metric,
    Outcome,
    Summary,
    SweepRow,
    describe_state,
)
from flaxcls.system.text import table

_NOTHING = '-'


def header(sweep: Sweep) -> list[str]:
    """Returns the titles of the columns that people read."""
    titles = [*sweep.axes, 'parameters', 'GFLOPs/image', 'runs']
    for metric in SHOWN:
        titles += [metric.label, 'difference']
    return titles


def cells(row: SweepRow) -> list[str]:
    """Returns a line for people: the levels, the cost, and mean, deviation and difference."""
    summary = row.summaries[ACCURACY.key]
    cost = row.cost
    texts = [level for _, level in row.cell.levels]
    texts.append(f'{cost["parameters"]:,}' if cost else _NOTHING)
    texts.append(f'{cost["forward_flops"] / 1e9:.4f}' if cost else _NOTHING)
    texts.append(str(summary.count))
    for metric in SHOWN:
        texts.append(mean_and_deviation(metric, row.summaries[metric.key]))
        texts.append('base' if row.base else difference(metric, row.differences[metric.key]))
    return texts


def mean_and_deviation(metric: Metric, summary: Summary) -> str:
    """Returns as in 98.61 ± 0.20."""
    if summary.mean is None:
        return _NOTHING
    text = metric.format(summary.mean)
    return text if summary.deviation is None else f'{text} ± {metric.format(summary.deviation)}'


def difference(metric: Metric, found: Difference | None) -> str:
    """Returns as in -0.56 [-0.81, -0.31]."""
    if found is None:
        return _NOTHING
    bounds = _NOTHING
    if found.interval:
        bounds = ', '.join(metric.format(bound, sign=True) for bound in found.interval)
    return f'{metric.format(found.mean, sign=True)} [{bounds}]'


def as_text(sweep: Sweep, rows: Sequence[SweepRow]) -> str:
    """Returns the table for a terminal."""
    titles, names = header(sweep), len(sweep.axes)
    align = '<' * names + '>' * (len(titles) - names)
    return '\n'.join(table([titles, *map(cells, rows)], align))


def as_markdown(sweep: Sweep, rows: Sequence[SweepRow]) -> str:
    """Returns the table for a page of Markdown, with a note that says how to read it."""
    names = len(sweep.axes)
    lines = [header(sweep), *map(cells, rows)]
    lines = [[text.replace('|', r'\|') for text in line] for line in lines]
    lines.insert(1, ['---'] * names + ['---:'] * (len(lines[0]) - names))
    body = '\n'.join(f'| {" | ".join(line)} |' for line in lines)
    return f'{body}\n\n{reading(sweep, rows)}\n'


def reading(sweep: Sweep, rows: Sequence[SweepRow]) -> str:
    """Returns how the table is read, in a few sentences."""
    shown = [row.differences[metric.key] for row in rows for metric in SHOWN]
    found = [difference for difference in shown if difference and difference.interval]
    tests = {True: "paired by seed (Student's t)", False: "between unpaired seeds (Welch's t)"}
    kinds = ' or '.join(
        tests[kind] for kind in (True, False) if any(d.paired == kind for d in found)
    )
    interval = f', with its 95 % interval, {kinds}' if kinds else ''
    return (
        'Mean and sample standard deviation over the seeds, after the last epoch; the training '
        'loss is its mean over the last epoch. The difference is that '
        f'from {describe_base(sweep)}{interval}.'
    )


def describe_base(sweep: Sweep) -> str:
    """Returns what cells are compared with, in words."""
    text = ', '.join(f'{axis} {level}' for axis, level in sweep.base.items())
    others = [axis for axis in sweep.axes if axis not in sweep.base]
    return f'{text} at the same {" and ".join(others)}' if others else text


def runs_csv(sweep: Sweep, outcomes: Mapping[SweepRun, Outcome]) -> str:
    """Returns a line for each run, with numbers as they are."""
    keys = [metric.key for metric in METRICS]
    lines = [[*sweep.axes, 'seed', 'state', 'step', *keys, 'seconds', 'workdir']]
    for run, outcome in outcomes.items():
        levels = [level for _, level in run.cell.levels]
        values = [outcome.values.get(key, '') for key in keys]
        seconds = '' if outcome.seconds is None else round(outcome.seconds, 1)
        state = describe_state(outcome)
        lines.append([*levels, run.seed, state, outcome.step, *values, seconds, str(run.workdir)])
    return _as_csv(lines)


def summary_csv(sweep: Sweep, rows: Sequence[SweepRow]) -> str:
    """Returns a line for each cell, with numbers as they are."""
    names = ('mean', 'deviation', 'difference', 'low', 'high', 'paired')
    titles = [f'{metric.key} {name}' for metric in METRICS for name in names]
    lines: list[list[Any]] = [
        [*sweep.axes, 'parameters', 'forward_flops', 'flops', 'count', 'base', *titles]
    ]
    for row in rows:
        line: list[Any] = [level for _, level in row.cell.levels]
        line += [row.cost.get(key, '') for key in ('parameters', 'forward_flops', 'flops')]
        line += [row.summaries[ACCURACY.key].count, row.base]
        for metric in METRICS:
            summary, found = row.summaries[metric.key], row.differences[metric.key]
            low, high = (found and found.interval) or (None, None)
            line += [summary.mean, summary.deviation, found and found.mean, low, high]
            line.append(found and found.paired)
        lines.append(line)
    return _as_csv(lines)


def _as_csv(lines: Iterable[Sequence[Any]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator='\n').writerows(lines)
    return file.getvalue()
