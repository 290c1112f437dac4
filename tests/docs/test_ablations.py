"""docs/ablations.md says what docs/ablations/*/sweep.csv has, of sweeps as their files are now."""

import csv
import pathlib
import re

import pytest

from flaxcls.sweeping import expand, results, tables

PAGE = pathlib.Path('docs/ablations.md').read_text(encoding='utf-8')
FOLDERS = sorted(path.parent for path in pathlib.Path('docs/ablations').glob('*/sweep.csv'))
_COSTS = (
    'parameters',
    'GFLOPs/image',
)  # Take a trace of each network; test_registry has them.

pytestmark = pytest.mark.usefixtures('extensions_unloaded')
each_sweep = pytest.mark.parametrize('folder', FOLDERS, ids=lambda folder: folder.name)


def _read(folder):
    """Returns the sweep, and the outcome of each of its runs as the table has it."""
    sweep = expand.load_sweep(f'experiments/sweeps/{folder.name}.py')
    runs = {
        (*(level for _, level in run.cell.levels), str(run.seed)): run
        for run in expand.expand(sweep, pathlib.Path('runs'))
    }
    outcomes = {}
    with (folder / 'sweep.csv').open(encoding='utf-8', newline='') as file:
        for line in csv.DictReader(file):
            run = runs.pop((*(line[axis] for axis in sweep.axes), line['seed']))
            values = {metric.key: float(line[metric.key]) for metric in results.METRICS}
            outcomes[run] = results.Outcome(int(line['step']), int(line['step']), values, None)
    return sweep, outcomes, runs


def _cells(line):
    return [cell.strip() for cell in line.strip('|').split('|')]


@each_sweep
def test_the_runs_are_all_that_the_sweep_has(folder):
    sweep, outcomes, missing = _read(folder)
    assert not missing
    assert len(sweep.seed_list) >= 3
    assert len(outcomes) == len(sweep.cells) * len(sweep.seed_list)


@each_sweep
def test_the_table_is_that_of_the_runs(folder):
    sweep, outcomes, _ = _read(folder)
    header = tables.header(sweep)
    shown = [place for place, title in enumerate(header) if title not in _COSTS]
    expected = [header, *map(tables.cells, results.tabulate(sweep, outcomes, {}))]
    (section,) = re.findall(
        rf'experiments/sweeps/{folder.name}\.py`(.*?)(?=^## |\Z)', PAGE, re.MULTILINE | re.DOTALL
    )
    lines = [_cells(line) for line in section.splitlines() if line.startswith('|')]
    found = [line for line in lines if not set(''.join(line)) <= set('-: ')]
    assert [[line[place] for place in shown] for line in found] == [
        [line[place] for place in shown] for line in expected
    ]
    assert tables.reading(sweep, results.tabulate(sweep, outcomes, {})) in ' '.join(section.split())


def test_there_are_sweeps_to_compare():
    assert len(FOLDERS) >= 3
