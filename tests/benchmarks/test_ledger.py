"""The ledger: the one that is kept here, and what becomes of runs that it takes in."""

import ast
import pathlib
import re

import pytest

from benchmarks import ledger
from flaxcls.config.config_dict import flatten
from flaxcls.config.files import load_config, split_variant
from flaxcls.errors import UserError
from flaxcls.training.run_record import RECORD_FILE, RunRecord, experiment_hash
from tests.helpers.configs import EXPERIMENTS
from tests.helpers.unpack import experiment_options

RESULTS = pathlib.Path('results')
ROWS = ledger.load_rows(RESULTS)


def test_the_ledger_has_every_experiment_and_each_row_but_once():
    experiments = {f'experiments/{row.experiment}' for row in ROWS}
    assert set(EXPERIMENTS) - experiments == {'experiments/transfer_resnet50.py'}  # Of your images.
    assert experiments < set(EXPERIMENTS)
    entries, outdated = ledger.load_entries(ROWS, RESULTS)
    assert len({experiment_hash(entry.options) for entry in entries}) == len(entries)
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert outdated == []


@pytest.mark.parametrize('path', sorted(pathlib.Path('experiments').glob('*.py')), ids=str)
def test_the_commands_of_docstrings_make_rows(path):
    entries, _ = ledger.load_entries(ROWS, RESULTS)
    text = ast.get_docstring(ast.parse(path.read_text())).replace('\\\n', '')
    commands = re.findall(r'flaxcls train --config=(\S+)(.*)', text)
    assert commands
    for file, flags in commands:
        overrides = dict(re.findall(r'--config\.([\w.]+)=(\S+)', flags))
        options = experiment_options(load_config(file, overrides))
        found = [entry for entry in entries if options == entry.options]
        assert len(found) == (path.stem != 'transfer_resnet50')


def test_results_are_rendered_from_the_records():
    entries, _ = ledger.load_entries(ROWS, RESULTS)
    assert pathlib.Path('RESULTS.md').read_text(encoding='utf-8') == ledger.render(entries)


def test_the_readme_says_what_the_ledger_does():
    entries, _ = ledger.load_entries(ROWS, RESULTS)
    readme = pathlib.Path('README.md').read_text(encoding='utf-8').split('## Measured')[1]
    for entry in entries:
        ours = ledger.describe_ours(entry)
        name = entry.row.name.replace('.py', '')
        shown = [line for line in readme.splitlines() if line.startswith(f'| `{name}` ')]
        assert len(shown) == (ours != 'not run' or entry.row.at_least is not None)
        assert all(f'| {ours} |' in line for line in shown)


@pytest.mark.parametrize('row', [row for row in ROWS if not row.options], ids=lambda row: row.name)
def test_a_docstring_expects_what_its_row_does(row):
    entries, _ = ledger.load_entries([row], RESULTS)
    text = pathlib.Path('experiments', split_variant(row.experiment)[0]).read_text()
    expected = row.at_least or row.top1
    numbers = (f'{expected:g}', f'{expected:.1f}', f'{expected:.2f}')
    assert any(f'{number} %' in text for number in numbers)
    assert ('Not run.' in text) == (ledger.describe_ours(entries[0]) == 'not run')


VAL = {'val/loss': 0.1, 'val/accuracy': 0.5, 'val/top5_accuracy': 1.0, 'val/count': 359}


def _leave_record(workdir, accuracy, *, overrides=(), from_step=0, step=10, saved=True):
    """Leaves what a run of ten steps would, up to `step`."""
    (workdir / 'checkpoints' / str(step if saved else 5)).mkdir(parents=True, exist_ok=True)
    config = load_config('experiments/digits_resnet20.py', dict(overrides))
    record = RunRecord(workdir, dict(flatten(config)), from_step=from_step, total_steps=10)
    record.update(step, VAL | {'val/accuracy': accuracy})


@pytest.fixture
def empty_ledger(tmp_path):
    folder = tmp_path / 'ledger'
    folder.mkdir()
    (folder / 'rows.toml').write_text((RESULTS / 'rows.toml').read_text())
    return folder


def _line(text, experiment):
    return next(line for line in text.splitlines() if line.startswith(f'| `{experiment}` '))


def _read(folder):
    return {path.name: path.read_text() for path in folder.glob('*.json')}


def test_runs_are_taken_in_and_rendered_with_mean_and_deviation(tmp_path, empty_ledger, capsys):
    runs, out = tmp_path / 'runs', tmp_path / 'RESULTS.md'
    for seed, accuracy in enumerate((0.98, 0.99, 1.0)):
        _leave_record(runs / f'any name {seed}', accuracy, overrides={'seed': seed})
    _leave_record(runs / 'half precision', 0.99, overrides={'model.dtype': 'bfloat16'})
    arguments = [f'--runs={runs}', f'--results={empty_ledger}', f'--out={out}']
    ledger.main(arguments)
    assert f'{len(ROWS)} rows, 4 runs' in capsys.readouterr().out
    text, kept = out.read_text(), _read(empty_ledger)
    assert _line(text, 'digits_resnet20.py').endswith('| 99.00 ± 0.82 | 4 |')
    assert 'not run' in _line(text, 'digits_densenet.py')
    lines = [line for line in text.splitlines() if line.startswith('| `digits_resnet20.py` | ')]
    assert sum(', bfloat16 |' in line for line in lines) == 1
    assert len(lines) == 1 + 4
    for again in (arguments, arguments[1:]):  # Changes nothing.
        ledger.main(again)
        assert (out.read_text(), _read(empty_ledger)) == (text, kept)
        assert 'in place of' not in capsys.readouterr().out
    _leave_record(runs / 'any name 2', 0.97, overrides={'seed': 2})
    ledger.main(arguments)
    assert '--replace takes this one in its place' in capsys.readouterr().out
    assert (out.read_text(), _read(empty_ledger)) == (text, kept)
    ledger.main([*arguments, '--replace'])
    assert '97.00%, in place of another run' in capsys.readouterr().out
    assert '| 98.25 ± 0.96, **not' in _line(out.read_text(), 'digits_resnet20.py')


def test_what_is_not_a_finished_run_of_a_row_is_left_out_with_its_reason(
    tmp_path, empty_ledger, capsys
):
    runs = tmp_path / 'runs'
    _leave_record(runs / 'other', 0.5, overrides={'num_epochs': 7})
    _leave_record(runs / 'unfinished', 0.5, step=5)
    _leave_record(runs / 'unsaved', 0.5, saved=False)  # Killed as its last checkpoint was written.
    _leave_record(runs / 'lengthened', 0.5, overrides={'num_epochs': 3}, step=5)
    _leave_record(runs / 'lengthened', 0.5, from_step=5)
    _leave_record(runs / 'damaged', 0.5)
    (runs / 'damaged' / RECORD_FILE).write_text('[')
    ledger.main([f'--runs={runs}', f'--results={empty_ledger}', f'--out={tmp_path}/R.md'])
    shown = capsys.readouterr().out
    for name, reason in (
        ('other', r'no row of rows\.toml has its config'),
        ('unfinished', 'it has made 5 of 10 steps'),
        ('unsaved', 'it has made 5 of 10 steps'),
        ('lengthened', 'its config was changed on the way'),
        ('damaged', r'its record\.json is damaged'),
    ):
        assert re.search(f'/{name}: left out, since {reason}', shown)
    assert _read(empty_ledger) == {}


@pytest.mark.parametrize(('accuracy', 'surprising'), [(0.984, True), (0.985, False), (1.0, False)])
def test_a_mean_outside_what_is_expected_is_marked(tmp_path, empty_ledger, accuracy, surprising):
    _leave_record(tmp_path / 'runs/one', accuracy)
    ledger.main([f'--runs={tmp_path}', f'--results={empty_ledger}', f'--out={tmp_path}/R.md'])
    line = _line((tmp_path / 'R.md').read_text(), 'digits_resnet20.py')
    assert ('**not as expected**' in line) == surprising


def test_a_published_number_is_expected_from_both_sides():
    row = ledger.LedgerRow('resnet50.py', 'somebody', top1=76.0, tolerance=0.3)
    for accuracy, surprising in ((0.7569, True), (0.757, False), (0.763, False), (0.7631, True)):
        entry = ledger.LedgerEntry(row, {}, [{'val': {'val/accuracy': accuracy}}])
        assert ('**not as expected**' in ledger.describe_ours(entry)) == surprising


def test_records_whose_experiment_has_changed_are_reported_and_not_counted(
    tmp_path, empty_ledger, capsys
):
    _leave_record(tmp_path / 'run', 0.5, overrides={'num_epochs': 7})
    (tmp_path / 'run' / RECORD_FILE).rename(empty_ledger / 'old-seed0.json')
    ledger.main([f'--results={empty_ledger}', f'--out={tmp_path}/R.md'])
    shown = capsys.readouterr().out
    assert 'old-seed0.json is left out, since no row' in shown and '0 runs' in shown


ROW = '[[rows]]\nexperiment = "resnet50.py"\nsource = "somebody"\n'


@pytest.mark.parametrize(
    ('name', 'text', 'says'),
    [
        ('rows.toml', None, 'there is no ledger in'),
        ('rows.toml', '[[rows', 'cannot be read'),
        ('rows.toml', '[[rows]]\ntop9 = 3', 'top9'),
        ('rows.toml', ROW, 'either top1 and tolerance, or at_least'),
        ('rows.toml', ROW + 'top1 = 76', 'either top1 and tolerance, or at_least'),
        ('rows.toml', ROW + 'top1 = "76"\ntolerance = 1', 'an accuracy is not a number'),
        ('rows.toml', ROW + 'at_least = 7\noptions = "x"', 'cannot be read'),
        ('rows.toml', ROW + 'at_least = 7\noptions = {"model.name" = "resnet5"}', 'did you mean'),
        ('a.json', '{', 'is damaged'),
        ('a.json', '[]', 'is damaged'),
        ('a.json', '{"seed": 1}', 'is damaged'),
    ],
)
def test_a_broken_ledger_is_reported_in_a_sentence(tmp_path, empty_ledger, name, text, says):
    (empty_ledger / name).unlink(missing_ok=True)
    if text is not None:
        (empty_ledger / name).write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        ledger.main([f'--results={empty_ledger}', f'--out={tmp_path}/R.md'])
    assert '\n' not in str(caught.value)


def test_flags_that_lead_nowhere_are_refused_before_anything_is_kept(tmp_path, empty_ledger):
    _leave_record(tmp_path / 'runs/one', 0.99)
    here = f'--results={empty_ledger}'
    for flags, says in (
        ([f'--runs={tmp_path}/none', here], r'no run has left a record\.json there'),
        (
            [f'--runs={tmp_path}/runs', here, f'--out={tmp_path}/none/R.md'],
            'is not a file in a folder',
        ),
        ([f'--runs={tmp_path}/runs', here, f'--out={tmp_path}'], 'is not a file in a folder'),
        ([f'--results={tmp_path}/ledger/rows.toml'], 'there is no ledger in'),
    ):
        with pytest.raises(UserError, match=says):
            ledger.main(flags)
    assert _read(empty_ledger) == {}
