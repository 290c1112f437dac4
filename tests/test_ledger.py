"""The ledger: the one that is kept here, and what becomes of runs that it takes in."""

import pathlib

import jax
import pytest
from conftest import EXPERIMENTS

from flaxcls import ledger, models
from flaxcls.errors import UserError
from flaxcls.experiment_files import load_config, split_variant
from flaxcls.records import RECORD_FILE, RunRecord

RESULTS = pathlib.Path('results')
ROWS, MISQUOTED = ledger.load_rows(RESULTS)
DIGITS = load_config('experiments/digits_resnet20.py')


def test_the_ledger_has_every_experiment_and_each_row_but_once():
    assert {f'experiments/{row.experiment}' for row in ROWS} == set(EXPERIMENTS)
    entries, outdated = ledger.load_entries(ROWS, RESULTS)
    assert len({entry.config_hash for entry in entries}) == len(entries)
    assert outdated == []


def test_results_are_rendered_from_the_records():
    entries, _ = ledger.load_entries(ROWS, RESULTS)
    assert pathlib.Path('RESULTS.md').read_text(encoding='utf-8') == ledger.render(
        entries, MISQUOTED
    )


def test_the_readme_tells_what_the_ledger_does():
    entries, _ = ledger.load_entries(ROWS, RESULTS)
    readme = pathlib.Path('README.md').read_text(encoding='utf-8').split('## Measured')[1]
    for entry in entries:
        ours = ledger.describe_ours(entry)
        told = [line for line in readme.splitlines() if line.startswith(f'| `{entry.row.name}` ')]
        assert len(told) == (ours != 'not run' or entry.row.at_least is not None)
        assert all(f'| {ours} |' in line for line in told)


@pytest.mark.parametrize('row', [row for row in ROWS if not row.options], ids=lambda row: row.name)
def test_a_docstring_expects_what_its_row_does(row):
    text = pathlib.Path('experiments', split_variant(row.experiment)[0]).read_text()
    expected = row.at_least if row.top1 is None else row.top1
    if expected is None:
        assert 'there is no published number' in text
    else:
        assert any(
            f'{number} %' in text
            for number in (f'{expected:g}', f'{expected:.1f}', f'{expected:.2f}')
        )
    assert ('Not run.' in text) == (row.top1 is not None or expected is None)


def test_rows_are_complete():
    for row in ROWS:
        assert (row.top1 is None) == (row.tolerance is None)
        assert row.top1 is None or row.at_least is None


def test_the_parameters_that_are_set_right_are_those_of_the_model():
    variables = models.abstract_variables(models.create_model('densenet121'), 224)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
    fact = next(item.fact for item in MISQUOTED if 'DenseNet-121' in item.claim)
    assert f'{count:,}' in fact


def _leave_record(workdir, accuracy, *, config=DIGITS, seed=0, steps=10, total_steps=10):
    workdir.mkdir(parents=True)
    config = config.copy_and_resolve_references()
    config.seed = seed
    val = {'val/loss': 0.1, 'val/accuracy': accuracy, 'val/top5_accuracy': 1.0, 'val/count': 359}
    RunRecord(workdir, config, from_step=0, total_steps=total_steps).update(steps, val)


@pytest.fixture
def empty_ledger(tmp_path):
    folder = tmp_path / 'ledger'
    folder.mkdir()
    (folder / 'rows.toml').write_text((RESULTS / 'rows.toml').read_text())
    return folder


def _line(text, experiment):
    return next(line for line in text.splitlines() if line.startswith(f'| `{experiment}` '))


def test_runs_are_taken_in_and_rendered_with_mean_and_deviation(tmp_path, empty_ledger, capsys):
    for seed, accuracy in enumerate((0.98, 0.99, 1.0)):
        _leave_record(tmp_path / f'runs/any name {seed}', accuracy, seed=seed)
    other = load_config(None, {'data.source': 'digits', 'num_epochs': 7})
    _leave_record(tmp_path / 'runs/other', 0.5, config=other)
    _leave_record(tmp_path / 'runs/unfinished', 0.5, steps=5)
    out = tmp_path / 'RESULTS.md'
    arguments = [f'--runs={tmp_path}/runs', f'--results={empty_ledger}', f'--out={out}']
    ledger.main(arguments)
    told = capsys.readouterr().out
    assert 'other: left out, since no row' in told
    assert 'unfinished: left out, since it has made 5 of 10 steps' in told
    assert '38 rows, 3 runs' in told
    text = out.read_text()
    assert _line(text, 'digits_resnet20.py').endswith('| 99.00 ± 1.00 | 3 |')
    assert 'not run' in _line(text, 'digits_densenet.py')
    assert sum(line.startswith('| `digits_resnet20.py` | ') for line in text.splitlines()) == 4
    ledger.main(arguments)  # Once more changes nothing.
    assert out.read_text() == text
    ledger.main(arguments[1:])
    assert out.read_text() == text


@pytest.mark.parametrize(('accuracy', 'surprising'), [(0.984, True), (0.985, False), (1.0, False)])
def test_a_mean_outside_what_is_expected_is_marked(tmp_path, empty_ledger, accuracy, surprising):
    _leave_record(tmp_path / 'runs/one', accuracy)
    ledger.main([f'--runs={tmp_path}', f'--results={empty_ledger}', f'--out={tmp_path}/R.md'])
    line = _line((tmp_path / 'R.md').read_text(), 'digits_resnet20.py')
    assert ('**not as expected**' in line) == surprising


def test_a_published_number_is_expected_from_both_sides():
    row = ledger.Row('resnet50.py', 'somebody', top1=76.0, tolerance=0.3)
    for accuracy, surprising in ((0.756, True), (0.758, False), (0.762, False), (0.764, True)):
        record = {'val': {'val/accuracy': accuracy}}
        entry = ledger.Entry(row, 'tfds:imagenet2012', 'hash', [record])
        assert ('**not as expected**' in ledger.describe_ours(entry)) == surprising


def test_records_whose_experiment_has_changed_are_told_and_not_counted(
    tmp_path, empty_ledger, capsys
):
    _leave_record(tmp_path / 'run', 0.5, config=load_config(None, {'num_epochs': 7}))
    (tmp_path / 'run' / RECORD_FILE).rename(empty_ledger / 'old-seed0.json')
    ledger.main([f'--results={empty_ledger}', f'--out={tmp_path}/R.md'])
    told = capsys.readouterr().out
    assert 'old-seed0.json is left out, since no row' in told and '0 runs' in told


@pytest.mark.parametrize(
    ('break_it', 'message'),
    [
        (lambda folder: (folder / 'rows.toml').unlink(), 'there is no ledger in'),
        (lambda folder: (folder / 'rows.toml').write_text('[[rows]]\ntop9 = 3'), 'top9'),
        (lambda folder: (folder / 'rows.toml').write_text('[[rows'), 'cannot be read'),
        (lambda folder: (folder / 'a.json').write_text('{'), 'is damaged'),
    ],
)
def test_a_broken_ledger_is_told_in_a_sentence(tmp_path, empty_ledger, break_it, message):
    break_it(empty_ledger)
    with pytest.raises(UserError, match=message):
        ledger.main([f'--results={empty_ledger}', f'--out={tmp_path}/R.md'])


def test_runs_without_a_record_are_refused(tmp_path, empty_ledger):
    with pytest.raises(UserError, match=r'no run has left a record\.json there'):
        ledger.main([f'--runs={tmp_path}/none', f'--results={empty_ledger}'])
