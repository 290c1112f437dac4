"""Sweeps: the runs that follow from a file, and the message for a mistake."""

import collections
import itertools
import os
import pathlib
import re
import sys

import pytest
import submitit  # noqa: F401 - imported within a test, it closes the stream that absl writes to

from flaxcls.commands import sweep
from flaxcls.config import files
from flaxcls.config.config_dict import flatten
from flaxcls.config.files import load_config
from flaxcls.errors import UserError
from flaxcls.sweeping import commands, expand, slurm
from flaxcls.sweeping.definition import Sweep, values, zipped
from flaxcls.system import cli
from flaxcls.training.from_config import create_network
from tests.helpers.small_sweep import DEPTH, ROOT, SMALL, WIDTH

FILES = sorted(pathlib.Path('experiments/sweeps').glob('*.py'))


@pytest.mark.usefixtures('extensions_unloaded')
@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_every_sweep_has_valid_runs_with_names_of_their_own(path):
    found = expand.load_sweep(str(path))
    runs = expand.expand(found, ROOT)  # Validates every config.
    assert 'arXiv' in path.read_text() or 'NIPS' in path.read_text()
    assert found.title and 'Claim' in found.text and f'--sweep={path.stem}\n' in found.text
    assert f'{len(runs)} runs' in found.text
    assert len({run.workdir for run in runs}) == len({str(run) for run in runs}) == len(runs)
    assert all(re.fullmatch(r'[\w.=,+-]+', run.cell.folder) for run in runs)
    cells = set(found.cells)
    for cell in cells:
        assert found.base_of(cell) in cells
    assert any(found.base_of(cell) != cell for cell in cells)
    for run in runs:
        create_network(load_config(run.experiment, run.overrides))


def test_runs_are_the_product_of_axes_and_seeds_with_the_options_of_their_levels():
    found = Sweep(**SMALL, overrides={'num_epochs': 7, 'model.width_multiplier': 2.0})
    runs = expand.expand(found, ROOT, {'batch_size': '32'})
    expected = set(itertools.product(DEPTH, WIDTH, range(2)))
    assert {(*dict(run.cell.levels).values(), run.seed) for run in runs} == expected
    assert len(runs) == len(expected)
    # Seed by seed.
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    for run in runs:
        levels, given = dict(run.cell.levels), run.options
        wanted = {'num_epochs': 7, 'batch_size': 32, 'seed': run.seed}
        for axis, level in levels.items():
            wanted |= found.axes[axis][level]
        assert {key: given[key] for key in wanted} == wanted
        words = commands.command_of(run, found.config)
        again = cli.parse_overrides([word for word in words if word.startswith('--config.')], [])
        config = files.load_config(found.config, again)
        assert dict(flatten(config)) == given


def test_a_part_of_the_baseline_compares_at_the_same_other_levels_and_skipped_ones_are_not_runs():
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
    'a value out of range': (
        {'axes': {'rate': values('optimizer.learning_rate', [-1.0])}},
        'above',
    ),
    'a value of another type': ({'axes': {'epochs': values('num_epochs', ['many'])}}, 'whole numb'),
    'an override': ({'overrides': {'bach_size': 8}}, 'did you mean batch_size'),
    'no axes': ({'axes': {}}, 'no axes'),
    'an axis without levels': ({'axes': {'depth': {}}}, 'no levels'),
    'a level that is not text': ({'axes': {'depth': {8: {}, '9': {'num_epochs': 3}}}}, 'as text'),
    'axes that are not a dict': ({'axes': ['depth']}, '{axis: {level: {option: value}}}'),
    'levels in a list': ({'axes': {'w': ['a']}}, '{level: {option: value}}'),
    'a level without its option': ({'axes': {'w': {'a': 0.5}}}, '{option: value}'),
    'an option that is not text': ({'axes': {'w': {'a': {3: 0.5}}}}, 'is not an option'),
    'axes that become one': ({'axes': {'a b': DEPTH, 'A_b': WIDTH}}, 'rename one'),
    'a baseline that is not a dict': ({'baseline': '4'}, '{axis: level}'),
    'an option of two axes': ({'axes': TWICE}, "axes 'depth' and 'again'"),
    'the seed as an axis': ({'axes': {'seed': values('seed', [0, 1])}}, 'seeds='),
    'the seed as an override': ({'overrides': {'seed': 3}}, 'seeds='),
    'no seeds': ({'seeds': 0}, 'at least one'),
    'a negative seed': ({'seeds': (-1, 0)}, 'from 0 to'),
    'a seed that is a text': ({'seeds': ('0',)}, 'whole numbers'),
    'a seed that is not a whole number': ({'seeds': (1.5,)}, 'whole numbers'),
    'seeds that are not a list': ({'seeds': 2.0}, 'how many'),
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
    'names that become one where case does not count': (
        {'axes': {'rate': {'a': {'num_epochs': 3}, 'A': {'num_epochs': 4}}}},
        'names of files',
    ),
    'no such config': ({'config': 'experiments/digits_resnet2.py'}, 'digits_resnet20.py'),
}


@pytest.mark.parametrize('name', MISTAKES)
def test_a_mistake_is_reported_before_any_run_begins(name):
    changes, says = MISTAKES[name]
    with pytest.raises(UserError, match=re.escape(says)):
        expand.expand(Sweep(**SMALL | changes), ROOT)


def test_names_of_folders_are_short_and_differ_where_runs_do():
    long = {f'{"x" * 150}{end}': {'num_epochs': epochs} for end, epochs in (('a', 3), ('b', 4))}
    cells = Sweep(**SMALL | {'axes': {'rate': long}}).cells
    assert len({cell.folder for cell in cells}) == 2
    assert all(len(cell.folder) <= 100 for cell in cells)


def test_levels_written_shortly_are_reported_when_they_do_not_fit():
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


def test_slurm_that_is_not_there_is_reported(tmp_path, monkeypatch):
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


def test_an_empty_list_of_gpus_means_none_and_parts_of_gpus_are_not_counted(tmp_path, monkeypatch):
    listing = tmp_path / 'nvidia-smi'
    listing.write_text('#!/bin/sh\necho "GPU 0: A"; echo "  MIG 1g Device 0: B"; echo "GPU 1: A"\n')
    listing.chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=os.pathsep)
    for slot in range(2):
        none = commands.share_of_accelerators(slot, 2, {'CUDA_VISIBLE_DEVICES': ''})
        assert none == {'CUDA_VISIBLE_DEVICES': ''}
        share = commands.share_of_accelerators(slot, 2, {})
        assert share == {'CUDA_VISIBLE_DEVICES': str(slot)}
