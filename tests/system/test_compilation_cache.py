"""Where compiled programs are kept."""

import os
import subprocess
import sys

from flaxcls.system.compilation_cache import keep_compiled_programs
from tests.helpers.environment import with_devices


def test_programs_are_kept_in_the_users_cache_folder_unless_they_name_another(
    monkeypatch, tmp_path
):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '1')  # And restored.
    monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
    keep_compiled_programs()
    folder = os.environ['JAX_COMPILATION_CACHE_DIR']
    assert folder.startswith(f'{tmp_path}/flaxcls/xla-') and os.path.isdir(folder)
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', '/elsewhere')
    keep_compiled_programs()
    assert os.environ['JAX_COMPILATION_CACHE_DIR'] == '/elsewhere'


def test_a_folder_that_cannot_be_made_keeps_none(monkeypatch, tmp_path):
    (tmp_path / 'file').touch()
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
    keep_compiled_programs()
    assert 'JAX_COMPILATION_CACHE_DIR' not in os.environ


def test_a_run_finds_the_programs_of_the_one_before(tmp_path):
    """The second one adds none."""
    environment = with_devices(1) | {'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
    environment |= {'XDG_CACHE_HOME': str(tmp_path / 'cache')}
    environment.pop('JAX_COMPILATION_CACHE_DIR')
    options = [
        '--config=experiments/digits_resnet20.py', '--config.num_epochs=1',
        '--config.model.stage_sizes=1,1', '--config.model.width_multiplier=0.25',
    ]  # fmt: skip
    kept = []
    for workdir in ('first', 'second'):
        command = [sys.executable, '-m', 'flaxcls', 'train', f'--workdir={tmp_path / workdir}']
        subprocess.run([*command, *options], check=True, env=environment, capture_output=True)
        kept.append({file.name for file in (tmp_path / 'cache' / 'flaxcls').rglob('*-cache')})
    assert kept[0] and kept[1] == kept[0]
