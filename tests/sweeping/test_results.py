"""Sweeps: what is computed from runs, and shown in tables, plots and the page."""

import collections
import csv
import dataclasses
import io
import json
import re
import statistics

import pytest
from justhtml import JustHTML
from scipy import stats

from flaxcls.sweeping import expand, figures, page, results, tables
from flaxcls.sweeping import run as run_lib
from flaxcls.sweeping.costs import describe_state
from flaxcls.sweeping.definition import Sweep
from tests.helpers.small_sweep import ROOT, SMALL, WIDTH


def test_differences_are_those_of_the_t_tests():
    ours, base = {0: 0.9, 1: 0.94, 2: 0.95}, {0: 0.88, 1: 0.93, 2: 0.9}
    found = results.compare(ours, base)
    changes = [ours[seed] - base[seed] for seed in ours]
    half = stats.t.ppf(0.975, 2) * statistics.stdev(changes) / 3**0.5
    mean = statistics.fmean(changes)
    assert found.paired
    assert found.mean == pytest.approx(mean)
    assert found.interval == pytest.approx((mean - half, mean + half))

    other = {7: 0.88, 8: 0.93, 9: 0.9, 10: 0.91}
    found = results.compare(ours, other)
    parts = [statistics.variance(v.values()) / len(v) for v in (ours, other)]
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 2 + parts[1] ** 2 / 3)
    half = stats.t.ppf(0.975, freedom) * sum(parts) ** 0.5
    mean = statistics.fmean(ours.values()) - statistics.fmean(other.values())
    assert not found.paired
    assert found.interval == pytest.approx((mean - half, mean + half))


def test_too_few_seeds_or_no_spread_give_no_interval():
    assert results.compare({}, {0: 1.0}) is None and results.compare({0: 1.0}, {}) is None
    assert results.compare({0: 0.5}, {0: 0.25}) == results.Difference(0.25, None, True)
    same = results.compare({0: 0.75, 1: 0.5}, {0: 0.5, 1: 0.25})
    assert same == results.Difference(0.25, None, True)
    assert results.summarize([0.5]) == results.Summary(1, 0.5, None)
    assert results.summarize([]) == results.Summary(0, None, None)
    assert results.summarize([1.0, 3.0]) == results.Summary(2, 2.0, pytest.approx(2**0.5))


def _outcome(number):
    numbers = {metric.key: 0.5 + number / 100 for metric in results.METRICS}
    return results.Outcome(44, 44, numbers, 10.0 + number)


HOSTILE = ('<script>alert(1)</script>', "a & b ' $x^2$ | {{ 7 }}")


def _made_up(finished):
    """A sweep with names that mean something to HTML, SVG, Markdown or matplotlib, and results."""
    levels = {name: {'num_epochs': 2 + place} for place, name in enumerate(HOSTILE)}
    axes = {'x <b> & "y"': levels, 'width': WIDTH}
    found = Sweep('experiments/digits_resnet20.py', axes, seeds=2)
    found = dataclasses.replace(found, title=HOSTILE[0], text=f'Claim: {HOSTILE[1]}\n\nAnd <i>.')
    runs = expand.expand(found, ROOT)
    nothing = results.Outcome(0, None, {}, None)
    outcomes = {
        run: _outcome(number) if number < finished else nothing for number, run in enumerate(runs)
    }
    return found, outcomes


@pytest.mark.parametrize('finished', [0, 1, 7, 12])
def test_the_page_is_valid_and_needs_no_other_file(finished):
    found, outcomes = _made_up(finished)
    rows = results.tabulate(found, outcomes, {})
    last = list(outcomes)[-1]
    failed = {} if finished == 12 else {last: f'it says {HOSTILE[0]}'}
    text = page.render(found, rows, outcomes, {'batch_size': 32}, failed)
    document = JustHTML(text, strict=True, sanitize=False)  # Raises what is not valid HTML.
    ids = re.findall(r'\sid="([^"]*)"', text)
    assert max(collections.Counter(ids).values()) == 1
    assert set(re.findall(r'(?:url\(#|href="#|aria-labelledby=")([^")]+)', text)) <= set(ids)
    for node in document.query('*'):
        for key in ('src', 'href', 'srcset', 'data'):
            assert node.attrs.get(key, '#').startswith(('#', 'data:'))
    assert 'http' not in text and not document.query('script')
    assert len(document.query('#results tbody tr')) == len(found.cells)
    assert len(document.query('#runs tbody tr')) == len(outcomes)
    assert len(document.query('#axes svg')) == (2 if finished else 0)
    shown = ' '.join(document.query('#results')[0].to_text().split())
    assert all(name in shown for name in HOSTILE)
    assert bool(document.query('progress')) == (finished < 12)
    assert len(document.query('#runs dd')) == len(failed)


def test_the_tables_say_what_the_runs_have_reached():
    found, outcomes = _made_up(7)
    rows = results.tabulate(found, outcomes, {})
    for row in rows:
        reached = [o.values for run, o in outcomes.items() if run.cell == row.cell and o.finished]
        for metric in results.METRICS:
            numbers = [value[metric.key] for value in reached]
            assert row.summaries[metric.key] == results.summarize(numbers)
        assert row.base == (found.base_of(row.cell) == row.cell)
    lines = list(csv.DictReader(io.StringIO(tables.runs_csv(found, outcomes))))
    assert [line['state'] for line in lines] == ['finished'] * 7 + ['to do'] * 5
    for line, outcome in zip(lines, outcomes.values(), strict=True):
        for key, value in outcome.values.items():
            assert float(line[key]) == value
    lines = list(csv.DictReader(io.StringIO(tables.summary_csv(found, rows))))
    for line, row in zip(lines, rows, strict=True):
        assert int(line['count']) == row.summaries['val/accuracy'].count
        change = row.differences['val/accuracy']
        assert line['val/accuracy difference'] == ('' if change is None else str(change.mean))
    for text in (tables.as_text(found, rows), tables.as_markdown(found, rows)):
        for row in rows:
            mean = tables.mean_and_deviation(results.ACCURACY, row.summaries['val/accuracy'])
            assert mean in text
    markdown = tables.as_markdown(found, rows).splitlines()
    assert len({line.replace(r'\|', '').count('|') for line in markdown[: 2 + len(rows)]}) == 1


def test_each_axis_is_drawn_with_a_line_for_each_combination_of_the_others():
    found, outcomes = _made_up(12)
    rows = results.tabulate(found, outcomes, {})
    for axis in found.axes:
        others = [levels for name, levels in found.axes.items() if name != axis]
        lines = figures.lines_over(axis, rows)
        assert len(lines) == len(others[0])
        assert sum(len(line.rows) for line in lines) == len(rows)
        levels = list(found.axes[axis])
        assert figures.draw(axis, levels, rows, outcomes, figures.paper_colour) is not None


@pytest.mark.parametrize('metric', results.METRICS, ids=lambda metric: metric.key)
def test_zero_has_no_minus(metric):
    for value in (-1e-9, 0.0, 1e-9):
        assert set(metric.format(value, sign=True)) == set('+0.')
        assert set(metric.format(value)) == set('0.')
    assert metric.format(-0.5, sign=True).startswith('-')


def test_an_axis_of_accuracy_ends_where_accuracies_do():
    found, outcomes = _made_up(12)

    def limits():
        rows = results.tabulate(found, outcomes, {})
        return figures.draw('width', list(WIDTH), rows, outcomes).axes[0].get_ylim()

    bottom, top = limits()
    assert 40 < bottom < top < 70
    for run, outcome in outcomes.items():  # Spread as far as can be.
        outcome.values[results.ACCURACY.key] = float(run.seed % 2)
    bottom, top = limits()
    assert -5 < bottom < 0 and 100 < top < 105


def test_all_lines_of_the_legend_are_distinct():
    many = {str(place): {'num_epochs': 2 + place} for place in range(24)}
    found = Sweep('experiments/digits_resnet20.py', {'width': WIDTH, 'epochs': many}, seeds=1)
    runs = expand.expand(found, ROOT)
    outcomes = {run: _outcome(number) for number, run in enumerate(runs)}
    rows = results.tabulate(found, outcomes, {})
    keys = figures.legend_of(figures.lines_over('width', rows))
    assert len({(key.colour, key.mark) for key in keys}) == len(keys) == 24
    text = page.render(found, rows, outcomes, {}, {})
    for key in keys:
        legend = (
            f'<span style="color: var(--run-{key.colour})" aria-hidden="true">{key.mark}</span>'
        )
        assert f'{legend} {key.name}</li>' in text
    drawn = figures.draw('width', list(WIDTH), rows, outcomes)
    shapes = {(str(line.get_color()), line.get_marker()) for line in drawn.axes[0].lines}
    assert len({shape for shape in shapes if shape[1] in set('os^D')}) == 24


def test_how_differences_are_judged_is_said_only_where_they_are():
    found, outcomes = _made_up(12)
    outcomes = {run: _outcome(number**2 % 7) for number, run in enumerate(outcomes)}
    assert 'paired by seed' in tables.reading(found, results.tabulate(found, outcomes, {}))
    first = {run: outcome for run, outcome in outcomes.items() if run.seed == 0}
    said = tables.reading(found, results.tabulate(found, first, {}))
    assert 'paired' not in said and 'interval' not in said and 'difference' in said


def test_the_values_are_those_after_the_last_step_and_over_the_last_epoch(tmp_path):
    run = expand.expand(Sweep(**SMALL, overrides={'num_epochs': 2}), tmp_path)[0]
    run.workdir.mkdir(parents=True)
    assert results.read_outcome(run) == results.Outcome(0, None, {}, None)
    part = {'from_step': 0, 'to_step': 10, 'seconds': 3.0}
    val = {'val/accuracy': 0.5, 'val/loss': 2.0}
    record = {'seed': 0, 'options': {}, 'total_steps': 20, 'parts': [part, part], 'val': val}
    records = [
        {'step': step, 'train/loss': loss, 'train/accuracy': loss / 10}
        for step, loss in ((10, 9.0), (16, 4.0), (20, 1.0))
    ]
    lines = ''.join(json.dumps(record) + '\n' for record in records)
    (run.workdir / 'metrics.jsonl').write_text(lines)
    for step in (10, 20):
        (run.workdir / 'record.json').write_text(json.dumps(record | {'step': step}))
        outcome = results.read_outcome(run)
        assert (outcome.step, outcome.total_steps, outcome.seconds) == (step, 20, 6.0)
        assert outcome.finished == (step == 20)
    assert outcome.values['train/loss'] == pytest.approx((6 * 4 + 4 * 1) / 10)
    assert outcome.values['val/accuracy'] == 0.5
    (run.workdir / 'metrics.jsonl').unlink()
    outcome = results.read_outcome(run)
    assert not outcome.finished and outcome.lacks_metrics
    assert describe_state(outcome) == 'no metrics.jsonl'
    failed = {}
    run_lib.run_unfinished([run], None, failed)  # It would end at once, and be as it is.
    assert 'metrics.jsonl' in failed[run] and str(run.workdir) in failed[run]
    (run.workdir / 'metrics.jsonl').write_text(lines)
    for saved, step in ((7, 7), (20, 20)):  # The record is written before the last save.
        (run.workdir / 'checkpoints' / str(saved)).mkdir(parents=True)
        outcome = results.read_outcome(run)
        assert outcome.step == step
        assert outcome.finished == (step == 20) and not outcome.lacks_metrics
