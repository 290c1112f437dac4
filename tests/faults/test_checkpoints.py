"""A damaged checkpoint is never taken for a good one, and locks nobody out."""

import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

import flaxcls
from benchmarks.checkpoint_faults import FAULTS, Originals, damage_one_file
from flaxcls.config.workdir import CHECKPOINTS_FOLDER, DAMAGED_FOLDER
from flaxcls.errors import RunError, UserError
from flaxcls.training.checkpoint_files import list_steps, read_run_weights
from flaxcls.training.checkpoints import Checkpoints
from tests.helpers.faults import draws


@pytest.fixture(scope='module')
def originals(finished):
    return Originals(finished.workdir)


@pytest.fixture
def copy(originals, tmp_path):
    return pathlib.Path(shutil.copytree(originals.workdir, tmp_path / 'copy'))


def _newest(workdir):
    return workdir / CHECKPOINTS_FOLDER / str(list_steps(workdir / CHECKPOINTS_FOLDER)[-1])


def test_whole_ones_are_read(originals, copy):
    assert originals.read_damaged(copy) == (originals.steps[-1],) * 2
    assert not (copy / DAMAGED_FOLDER).exists()


def test_of_one_fault_drawn_at_random_nothing_comes_through(seed, originals, tmp_path):
    rng = np.random.default_rng(seed)
    for number in range(draws(8)):
        copy = pathlib.Path(shutil.copytree(originals.workdir, tmp_path / str(number)))
        fault = damage_one_file(copy / CHECKPOINTS_FOLDER, rng)
        steps = originals.read_damaged(copy)
        assert set(steps) <= set(originals.steps), f'{fault}, seed {seed}'


@pytest.mark.parametrize('kind', ['emptied', 'removed'])
def test_every_file_of_the_newest_may_be_lost(kind, originals, tmp_path, capsys):
    files = [path for path in _newest(originals.workdir).rglob('*') if path.is_file()]
    for number, path in enumerate(files):
        copy = pathlib.Path(shutil.copytree(originals.workdir, tmp_path / str(number)))
        lost = copy / path.relative_to(originals.workdir)
        data = FAULTS[kind](path.read_bytes(), np.random.default_rng(0))
        lost.unlink() if data is None else lost.write_bytes(data)
        newest = str(_newest(copy))
        capsys.readouterr()
        step, resumed = originals.read_damaged(copy)
        warnings = [line for line in capsys.readouterr().err.splitlines() if newest in line]
        # Weights are whole where only the optimizer's state is lost, which a resume needs.
        passed_over = resumed != originals.steps[-1]
        assert passed_over or step == resumed
        # With step and file, once by each of the two readers; and kept, to be looked at.
        assert len(warnings) == passed_over + (step != originals.steps[-1])
        assert all(line.startswith('Warning: ') for line in warnings)
        moved = copy / DAMAGED_FOLDER / str(originals.steps[-1])
        assert moved.is_dir() == passed_over


@pytest.mark.parametrize('name', ['params.', 'opt_state.', 'flaxcls'])
def test_a_digest_whose_name_is_damaged_is_no_digest(name, originals, copy):
    path = _newest(copy) / '_CHECKPOINT_METADATA'
    text = path.read_text()
    assert name in text
    path.write_text(text.replace(name, name[:-1] + '?', 1))
    step, resumed = originals.read_damaged(copy)
    assert resumed in originals.steps
    assert (step == originals.steps[-1]) == (name != 'params.')


@pytest.mark.parametrize('item', ['default', 'metrics'])
def test_whole_files_that_are_not_its_own_are_not_taken_for_them(item, originals, copy):
    """They decode without a fault, so nothing but the digests can tell."""
    older = copy / CHECKPOINTS_FOLDER / str(originals.steps[-2])
    assert _newest(copy) != older
    shutil.rmtree(_newest(copy) / item)
    shutil.copytree(older / item, _newest(copy) / item)
    assert originals.read_damaged(copy) == (originals.steps[-2],) * 2


def test_arrays_of_another_tree_are_damage_and_no_mistake_of_the_user(originals, copy, tmp_path):
    state = originals.load(originals.steps[-1])
    with Checkpoints(tmp_path / 'other') as checkpoints:
        checkpoints.save(state.replace(ema=state.params), None)
    (other,) = (tmp_path / 'other' / CHECKPOINTS_FOLDER).iterdir()
    shutil.rmtree(_newest(copy) / 'default')
    shutil.copytree(other / 'default', _newest(copy) / 'default')
    assert originals.read_damaged(copy) == (originals.steps[-2],) * 2


def test_an_older_one_that_is_damaged_keeps_nobody_from_the_newest(originals, copy):
    older = copy / CHECKPOINTS_FOLDER / str(originals.steps[0])
    (older / 'metrics/metrics').write_bytes(b'')
    assert originals.read_damaged(copy) == (originals.steps[-1],) * 2


def test_a_step_that_was_asked_for_is_not_another(originals, copy):
    step = originals.steps[-1]
    for path in _newest(copy).glob('default/**/d/*'):
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(RunError, match=f'{step}.*Put back a copy, or train in a new workdir'):
        read_run_weights(copy, str(step))
    assert read_run_weights(copy, 'newest')[0] == originals.steps[-2]


def test_where_all_are_damaged_the_run_fails_and_nothing_is_moved(originals, copy):
    for path in (copy / CHECKPOINTS_FOLDER).glob('*/default/**/d/*'):
        path.write_bytes(path.read_bytes()[:40])
    for read in (
        read_run_weights,
        lambda folder: Checkpoints(folder).restore_newest(originals.like),
    ):
        with pytest.raises(RunError, match='Put back a copy') as caught:
            read(copy)
        assert '\n' not in str(caught.value)
    assert list_steps(copy / CHECKPOINTS_FOLDER) == originals.steps


@pytest.mark.parametrize('name', ['_METADATA', 'manifest.ocdbt'])
def test_what_may_not_be_read_is_no_damage(name, originals, copy, monkeypatch):
    """Root may read everything, so the system's word is changed, and the file cannot be used."""
    closed = _newest(copy) / 'default' / name
    closed.write_bytes(b'')
    monkeypatch.setattr('os.access', lambda path, mode: str(path) != str(closed))
    for read in (
        read_run_weights,
        lambda folder: Checkpoints(folder).restore_newest(originals.like),
    ):
        with pytest.raises(RunError, match='mend that, and start the same command again'):
            read(copy)
    assert not (copy / DAMAGED_FOLDER).exists()


def test_a_refused_file_is_no_damage(originals, copy, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(13, 'Permission denied', str(self))

    monkeypatch.setattr(pathlib.Path, 'read_text', refuse)
    with pytest.raises(RunError, match=r'Permission denied.*; mend that'):
        read_run_weights(copy)
    assert not (copy / DAMAGED_FOLDER).exists()


def test_weights_that_are_no_numbers_are_refused_by_name(originals, tmp_path):
    state = originals.load(originals.steps[-1])
    stem = state.params['bn_stem'] | {'bias': state.params['bn_stem']['bias'].at[0].set(jnp.nan)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state.replace(params=state.params | {'bn_stem': stem}), None)
    with pytest.raises(RunError, match=r'params\.bn_stem\.bias of the checkpoint .* is not finite'):
        read_run_weights(tmp_path)


def test_a_workdir_without_checkpoints_takes_no_other_experiment(tiny_config, copy):
    shutil.rmtree(copy / CHECKPOINTS_FOLDER)
    before = {path: path.read_bytes() for path in copy.iterdir() if path.is_file()}
    with pytest.raises(UserError, match='choose another --workdir'):
        flaxcls.train_and_evaluate(tiny_config(seed=5), copy)
    assert before == {path: path.read_bytes() for path in copy.iterdir() if path.is_file()}
