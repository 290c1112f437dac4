"""Checkpoints that an earlier version wrote: read, evaluated, and continued."""

import pathlib
import shutil

import pytest

import flaxcls
from flaxcls.config.workdir import load_stored_config
from flaxcls.training.checkpoint_files import read_run_state
from flaxcls.training.checkpoints import fingerprint
from flaxcls.training.logging import read_metrics
from flaxcls.training.setup import build_setup

# By the version before the package had rooms (4f87349), with Orbax 0.11.36 and jax 0.10.2:
#   python -m flaxcls.main --config=experiments/digits_resnet20.py --config.num_epochs=2
#   --config.model.stage_sizes=1 --config.model.width_multiplier=0.25 --config.data.image_size=8
STORED = pathlib.Path('tests/goldens/run').resolve()
SHA256 = 'f1d3faf7f56cf06930abdb3556d28a1fad22190a9bfba6190b7b06cda748fa53'


@pytest.fixture
def workdir(tmp_path):
    return shutil.copytree(STORED, tmp_path / 'run')


def test_the_state_is_the_one_that_was_saved(workdir):
    setup = build_setup(load_stored_config(workdir))
    _, state = read_run_state(workdir, '44', setup.abstract_state())
    assert fingerprint(state) == SHA256


def test_it_evaluates_as_it_did_and_trains_on(workdir):
    (*_, recorded) = read_metrics(workdir)
    values = flaxcls.evaluate_workdir(workdir)
    for key in ('val/accuracy', 'val/count'):
        assert values[key] == recorded[key]
    assert values['val/loss'] == pytest.approx(recorded['val/loss'], rel=1e-5)
    config = load_stored_config(workdir, {'num_epochs': 3})
    state, history = flaxcls.train_and_evaluate(config, workdir)
    assert int(state.step) == 66
    assert [record for record in history if record['step'] <= 44] == read_metrics(STORED)
