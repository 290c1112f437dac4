"""Sweeps: what follows from a file, what is computed from runs, and that a sweep goes on."""

import collections
import csv
import dataclasses
import io
import itertools
import json
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys

import pytest
import submitit  # noqa: F401 - imported within a test, it closes the stream that absl writes to
from conftest import TINY, with_devices
from justhtml import JustHTML
from scipy import stats
from slurm_cluster import WAIT, ask, cluster, needs_slurm, wait_for  # noqa: F401 - `cluster` is a fixture

from flaxcls import models, sweep
from flaxcls.config import options
from flaxcls.errors import RunError, UserError
from flaxcls.sweeping import (
    Sweep,
    commands,
    definition,
    figures,
    page,
    results,
    slurm,
    tables,
    values,
    zipped,
)
from flaxcls.sweeping.job import LOG_FILE
from flaxcls.writers import read_metrics

FILES = sorted(pathlib.Path('experiments/sweeps').glob('*.py'))
ROOT = pathlib.Path('somewhere')
DEPTH = zipped(['4', '6'], {'model.stage_sizes': [(1,), (1, 1)]})
WIDTH = values('model.width_multiplier', [0.125, 0.25, 0.5])
SMALL = {
    'config': 'experiments/digits_resnet20.py',
    'axes': {'depth': DEPTH, 'width': WIDTH},
    'seeds': 2,
}


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_every_sweep_has_valid_runs_with_names_of_their_own(path):
    found = definition.load_sweep(str(path))
    runs = definition.expand(found, ROOT)  # Validates every config.
    assert 'arXiv' in path.read_text() or 'NIPS' in path.read_text()
    assert found.title and 'Claim' in found.text and f'--sweep={path}' in found.text
    assert f'{len(runs)} runs' in found.text
    assert len({run.workdir for run in runs}) == len({str(run) for run in runs}) == len(runs)
    assert all(re.fullmatch(r'[\w.=,+-]+', run.cell.folder) for run in runs)
    cells = set(found.cells)
    for cell in cells:
        assert found.base_of(cell) in cells
    assert any(found.base_of(cell) != cell for cell in cells)
    for run in runs:
        models.model_from_config(run.config)


def test_runs_are_the_product_of_axes_and_seeds_with_the_options_of_their_levels():
    found = Sweep(**SMALL, overrides={'num_epochs': 7, 'model.width_multiplier': 2.0})
    runs = definition.expand(found, ROOT, {'batch_size': '32'})
    expected = set(itertools.product(DEPTH, WIDTH, range(2)))
    assert {(*dict(run.cell.levels).values(), run.seed) for run in runs} == expected
    assert len(runs) == len(expected)
    # Seed by seed.
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    for run in runs:
        levels, given = dict(run.cell.levels), dict(options(run.config))
        wanted = {'num_epochs': 7, 'batch_size': 32, 'seed': run.seed}
        for axis, level in levels.items():
            wanted |= found.axes[axis][level]
        assert {key: given[key] for key in wanted} == wanted
        words = commands.command_of(run, found.config)
        again = sweep.parse_overrides([word for word in words if word.startswith('--config.')], [])
        config = definition.load_config(found.config, again)
        assert dict(options(config)) == given


def test_a_part_of_the_baseline_compares_at_the_same_other_levels_and_skipped_ones_are_no_runs():
    skip = [{'depth': '6', 'width': '0.5'}]
    found = Sweep(**SMALL, baseline={'depth': '4'}, skip=skip)
    cells = found.cells
    assert len(cells) == 5
    for cell in cells:
        levels = dict(cell.levels)
        assert dict(found.base_of(cell).levels) == levels | {'depth': '4'}
    whole = Sweep(**SMALL)
    assert {whole.base_of(cell) for cell in whole.cells} == {whole.cells[0]}


TYPO = {'axes': {'width': {'1': {'model.with_multiplier': 1.0}}}}
TWICE = {'depth': DEPTH, 'again': values('model.stage_sizes', [(1,), (2,)])}
MISTAKES = {
    'an unknown option': (TYPO, 'did you mean model.width_multiplier'),
    'a value out of range': ({'axes': {'rate': values('optimizer.learning_rate', [-1.0])}}, 'posi'),
    'a value of another type': ({'axes': {'epochs': values('num_epochs', ['many'])}}, 'whole numb'),
    'an override': ({'overrides': {'bach_size': 8}}, 'did you mean batch_size'),
    'no axes': ({'axes': {}}, 'no axes'),
    'an axis without levels': ({'axes': {'depth': {}}}, 'no levels'),
    'a level that is no text': ({'axes': {'depth': {8: {}, '9': {'num_epochs': 3}}}}, 'as a text'),
    'an option of two axes': ({'axes': TWICE}, "axes 'depth' and 'again'"),
    'the seed as an axis': ({'axes': {'seed': values('seed', [0, 1])}}, 'seeds='),
    'the seed as an override': ({'overrides': {'seed': 3}}, 'seeds='),
    'no seeds': ({'seeds': 0}, 'at least one'),
    'a seed twice': ({'seeds': (1, 1)}, 'none twice'),
    'a baseline of no axis': ({'baseline': {'dept': '4'}}, 'did you mean depth'),
    'a baseline of no level': ({'baseline': {'depth': '5'}}, 'there are 4, 6'),
    'a skip of no level': ({'skip': [{'depth': '5'}]}, 'there are 4, 6'),
    'everything skipped': ({'skip': [{}]}, 'all combinations'),
    'one config twice': (
        {'axes': {'rate': {'a': {'num_epochs': 3}, 'b': {'num_epochs': 3}}}},
        'rate=a and rate=b are the same config',
    ),
    'names that become one': (
        {'axes': {'rate': {'a b': {'num_epochs': 3}, 'a/b': {'num_epochs': 4}}}},
        'names of files',
    ),
    'no such config': ({'config': 'experiments/digits_resnet2.py'}, 'digits_resnet20.py'),
}


@pytest.mark.parametrize('name', MISTAKES)
def test_a_mistake_is_told_before_any_run_begins(name):
    changes, says = MISTAKES[name]
    with pytest.raises(UserError, match=re.escape(says)):
        definition.expand(Sweep(**SMALL | changes), ROOT)


def test_levels_written_shortly_are_told_when_they_do_not_fit():
    with pytest.raises(UserError, match='comes twice'):
        values('num_epochs', [3, 3])
    with pytest.raises(UserError, match='2 values for the 1 levels'):
        zipped(['a'], {'num_epochs': [3, 4]})
    assert list(values('model.stage_sizes', [(1, 2), (3,)])) == ['1-2', '3']


@pytest.mark.parametrize(
    ('argv', 'says'),
    [
        ([], '--sweep'),
        (['--sweep=experiments/sweeps/shortcut.py'], 'did you mean'),
        (['--sweep=experiments/digits_resnet20.py'], 'no get_sweep() function'),
        (['--sweep={file}', '--jobs=0'], 'at least 1'),
        (['--sweep={file}', '--jobs=two'], "'two'"),
        (['--sweep={file}', '--executor=slrm'], 'choose local or slurm'),
        (['--sweep={file}', '--slurm', 'partition=main'], 'belongs to --executor=slurm'),
        (['--sweep={file}', '--executor=slurm', '--slurm', 'partition'], 'KEY=VALUE'),
        (['--sweep={file}', '--dry_run', '--report'], 'give one of them'),
        (['--sweep={file}', '--job=2'], 'did you mean --jobs'),
        (['--sweep={file}', '--config.num_epoch=3'], 'did you mean num_epochs'),
        (['--sweep={file}', '--config.model.shortcut=B'], "set by the axis 'shortcut'"),
        (['--sweep={file}', '--config.model.growth_rate=3'], 'has no meaning for resnet20'),
    ],
)
def test_a_wrong_command_is_one_sentence(argv, says, tmp_path):
    argv = [word.format(file=FILES[-1]) for word in argv]
    assert FILES[-1].stem == 'shortcuts'
    with pytest.raises(UserError, match=re.escape(says)):
        sweep.main([*argv, f'--workdir={tmp_path / "none"}'])
    assert not (tmp_path / 'none').exists()


def test_slurm_that_is_not_there_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    argv = [f'--sweep={FILES[-1]}', '--executor=slurm', f'--workdir={tmp_path / "none"}']
    with pytest.raises(UserError, match='needs sbatch'):
        sweep.main(argv)


def test_without_submitit_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'submitit', None)
    with pytest.raises(UserError, match=re.escape("pip install 'flaxcls[sweep]'")):
        commands.require_submitit()


def test_sbatch_gets_what_is_given():
    given = {'partition': 'main', 'gpus-per-node': '2', 'time': '90'}
    found = slurm.slurm_parameters(given)
    assert found['time'] == 90
    others = {'partition': 'main', 'gpus-per-node': '2', 'requeue': True}
    assert found['additional_parameters'] == others
    with pytest.raises(UserError, match='in minutes'):
        slurm.slurm_parameters({'time': '1:30:00'})


@pytest.mark.parametrize('jobs', [1, 2, 3, 4, 6])
def test_jobs_side_by_side_share_the_gpus(jobs):
    gpus = ['0', '1', '2', '3']
    environment = {'CUDA_VISIBLE_DEVICES': ','.join(gpus)}
    shares = [commands.share_of_accelerators(slot, jobs, environment) for slot in range(jobs)]
    taken = [gpu for share in shares for gpu in share['CUDA_VISIBLE_DEVICES'].split(',')]
    assert set(taken) == set(gpus)
    memory = collections.Counter()
    for share in shares:
        for gpu in share['CUDA_VISIBLE_DEVICES'].split(','):
            memory[gpu] += float(share.get('XLA_PYTHON_CLIENT_MEM_FRACTION', 0.75))
    assert max(memory.values()) <= 0.9


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
    runs = definition.expand(found, ROOT)
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
    document = JustHTML(text, strict=True, sanitize=False)  # Raises what is no valid HTML.
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
        lines = figures.lines_over(found, axis, rows)
        assert len(lines) == len(others[0])
        assert sum(len(line.rows) for line in lines) == len(rows)
        assert figures.draw(found, axis, rows, outcomes, figures.paper_colour) is not None


@pytest.fixture
def one_device(monkeypatch):
    """Runs are processes of their own, which take the environment of the tests."""
    monkeypatch.setenv('XLA_FLAGS', with_devices(1)['XLA_FLAGS'])


TRIED = """
'''A sweep of the tests.'''
from flaxcls.sweeping import Sweep, values

def get_sweep():
    return Sweep(
        config='experiments/digits_resnet20.py',
        overrides={overrides},
        axes={{'rate': values('optimizer.learning_rate', {rates})}},
        seeds={seeds},
    )
"""


def _write_sweep(folder, rates, seeds, **changes):
    overrides = {key: value for key, value in TINY.items() if key != 'model.name'}
    overrides |= {'model.stage_sizes': (1,), 'augment.crop': 'none'} | changes
    path = folder / 'tried.py'
    path.write_text(TRIED.format(overrides=overrides, rates=rates, seeds=seeds))
    return path


def _start(*words):
    return subprocess.Popen(
        [sys.executable, '-m', 'flaxcls.sweep', *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def _records(root):
    return {str(p): json.loads(p.read_text()) for p in sorted(root.glob('rate=*/*/record.json'))}


def _finished(root):
    return {p for p, record in _records(root).items() if record['step'] == record['total_steps']}


@pytest.mark.usefixtures('one_device')
def test_a_sweep_that_was_interrupted_goes_on_and_a_failed_run_stops_no_other(tmp_path, capfd):
    file = _write_sweep(
        tmp_path, [0.1, 1e30], 2,
        num_epochs=40, eval_every_epochs=40, checkpoint_every_steps=2000, log_every_steps=20,
    )  # fmt: skip
    root = tmp_path / 'runs'
    words = [f'--sweep={file}', f'--workdir={root}', '--jobs=2']
    command = _start(*words)
    good = root / 'rate=0.1/seed0'
    wait_for('the first steps', lambda: len(read_metrics(good)) > 1)
    os.killpg(command.pid, signal.SIGINT)  # As Ctrl-C at a terminal does.
    said, _ = command.communicate(timeout=WAIT)
    assert command.returncode == 130, said
    assert 'SIGINT' in said.splitlines()[-1] and 'goes on' in said.splitlines()[-1]
    record = _records(root)[str(good / 'record.json')]
    saved = record['step']
    assert 0 < saved < record['total_steps']

    with pytest.raises(RunError, match='2 of 4 runs have failed'):
        sweep.main(words)
    out = capfd.readouterr().out
    assert f'Resuming at step {saved}.' in (good / LOG_FILE).read_text()
    assert len(_finished(root)) == 2 and all('rate=0.1' in path for path in _finished(root))
    told = [line for line in out.splitlines() if 'failed: ' in line]
    assert len(told) == 2
    for line in told:
        assert 'loss' in line and LOG_FILE in line
    for name in ('sweep.csv', 'summary.csv', 'summary.md', 'sweep.html', 'rate.png', 'rate.svg'):
        assert (root / name).stat().st_size > 100

    before = {path: path.stat().st_mtime_ns for path in root.glob('rate=*/*/record.json')}
    sweep.main([*words, '--report'])
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert '2 of 4 runs are finished' in capfd.readouterr().out
    sweep.main([*words, '--dry_run'])
    assert '4 runs, 2 of them finished' in capfd.readouterr().out

    _write_sweep(tmp_path, [0.1, 1e30], 2, num_epochs=41)
    with pytest.raises(UserError, match=re.escape('config.num_epochs is 41')):
        sweep.main(words)


@pytest.mark.usefixtures('one_device')
def test_a_run_ends_with_the_process_that_has_started_it(tmp_path):
    file = _write_sweep(tmp_path, [0.1], 1, num_epochs=400, eval_every_epochs=400)
    root = tmp_path / 'runs'
    command = _start(f'--sweep={file}', f'--workdir={root}')
    workdir = root / 'rate=0.1/seed0'
    wait_for('the first steps', lambda: len(read_metrics(workdir)) > 1)
    command.kill()
    command.wait()  # Not until its output ends, which the run still holds.
    log = workdir / LOG_FILE
    wait_for('the save', lambda: 'stopped and saved at step' in log.read_text())
    assert len(_finished(root)) == 0


def test_the_values_are_those_after_the_last_step_and_over_the_last_epoch(tmp_path):
    run = definition.expand(Sweep(**SMALL, overrides={'num_epochs': 2}), tmp_path)[0]
    run.workdir.mkdir(parents=True)
    assert results.read_outcome(run) == results.Outcome(0, None, {}, None)
    part = {'from_step': 0, 'seconds': 3.0}
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
    assert not results.read_outcome(run).finished


@needs_slurm
@pytest.mark.usefixtures('cluster', 'one_device')
def test_slurm_runs_a_sweep_as_an_array_and_a_rerun_finishes_only_the_rest(tmp_path):
    file = _write_sweep(tmp_path, [0.1, 0.05, 0.02], 2, num_epochs=2)
    root = tmp_path / 'runs'
    words = [f'--sweep={file}', f'--workdir={root}', '--executor=slurm', '--jobs=2']
    words += ['--slurm', 'partition=main']

    first = _start(*words)
    wait_for('the first run', lambda: _finished(root))
    queue = ask('squeue', '--noheader', '--array', '--format=%F %K')
    arrays = {line.split()[0] for line in queue.splitlines()}
    assert len(arrays) == 1 and 'N/A' not in queue
    first.kill()  # As when a connection breaks: the array goes on.
    first.communicate()

    second = _start(*words)
    wait_for('half of the runs', lambda: len(_finished(root)) >= 3)
    second.send_signal(signal.SIGINT)
    said, _ = second.communicate(timeout=WAIT)
    assert second.returncode == 130, said
    assert 'are in the queue already' in said
    assert ask('squeue', '--noheader') == ''
    done = _finished(root)
    assert 3 <= len(done) < 6
    kept = {path: pathlib.Path(path).stat().st_mtime_ns for path in done}

    third = _start(*words)
    said, _ = third.communicate(timeout=WAIT)
    assert third.returncode == 0, said
    assert f'{len(done)} of them finished before' in said
    assert len(_finished(root)) == 6
    assert {path: pathlib.Path(path).stat().st_mtime_ns for path in done} == kept
    for line in said.splitlines():
        if match := re.match(r'\[\d/6\] rate=(\S+), seed (\d)', line):
            assert str(root / f'rate={match[1]}' / f'seed{match[2]}' / 'record.json') not in done
