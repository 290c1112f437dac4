"""A full disk: every command that writes says which file, and what was there is as it was."""

import errno
import multiprocessing
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from flaxcls.__main__ import main, run
from flaxcls.errors import RunError
from flaxcls.training.torch_weights import export_weights
from tests.helpers.configs import TRAINED
from tests.helpers.faults import draws
from tests.helpers.runs import list_files

SMALL = [f'--config.{key}={value}' for key, value in TRAINED.items()]
LARGE = 2**26  # Bytes.


class Disk:
    """A file system of its own, whose size can be chosen."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self._mount(f'size={LARGE}')

    def _mount(self, options: str) -> None:
        command = ['mount', '-t', 'tmpfs', '-o', options, 'flaxcls', str(self.folder)]
        subprocess.run(command, check=True, capture_output=True)

    def resize(self, size: int) -> None:
        self._mount(f'remount,size={max(size, 4096)}')

    def fill(self) -> None:
        free = shutil.disk_usage(self.folder).free
        (self.folder / 'filling').write_bytes(bytes(free))

    def empty(self) -> None:
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def unmount(self) -> None:
        subprocess.run(['umount', str(self.folder)], check=True)


@pytest.fixture(scope='module')
def disk(tmp_path_factory):
    try:
        disk = Disk(tmp_path_factory.mktemp('disk'))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f'needs Linux and root, to mount a file system: {error}')
    yield disk
    disk.unmount()


@pytest.fixture(scope='module')
def full(disk, finished):
    """A full disk that has a finished run."""
    disk.empty()
    disk.resize(LARGE)
    shutil.copytree(finished.workdir, disk.folder / 'run')
    disk.fill()
    return disk.folder


# What each is told to write to is {full}; what it reads is the {run} elsewhere, or an {image}.
COMMANDS = {
    'train': ['train', '--config=default', *SMALL, '--workdir={new}'],
    'train on': ['train', *SMALL, '--workdir={full}/run', '--config.num_epochs=9'],
    'evaluate': ['evaluate', '--workdir={full}/run'],
    'calibrate': ['evaluate', '--workdir={full}/run', '--calibrate'],
    'evaluate, csv': ['evaluate', '--workdir={run}', '--csv={full}/a.csv'],
    'predict, csv': ['predict', '--workdir={run}', '--csv={full}/a.csv', '{image}'],
    'predict, json': ['predict', '--workdir={run}', '--json={full}/a.json', '{image}'],
    'explain': ['explain', '--workdir={run}', '--method=filters', '--out={full}/a.png'],
    'report': ['report', '--workdir={run}', '--out={full}/a.html'],
    'export': ['export', '--workdir={run}', '--format=stablehlo', '--out={new}'],
    'precise-bn': ['precise-bn', '--workdir={run}', '--out={new}'],
    'safetensors': ['weights', 'export', '--workdir={run}', '--weights={full}/a.safetensors'],
    'import': [
        'weights', 'import', '--model=resnet20', '--weights={weights}', '--workdir={new}',
        *(word for word in SMALL if 'model.' in word and 'model.name' not in word),
    ],
    'data show': ['data', 'show', *SMALL, '--out={full}/a.png'],
    'data check': ['data', 'check', '--source=digits', '--json={full}/a.json'],
    'data sheets': ['data', 'check', '--source=digits', '--sheets={full}/sheets'],
    'benchmark': ['benchmark', *SMALL, '--rounds=2', '--steps=1', '--json={full}/a.json'],
    'sweep': ['sweep', '--sweep=shortcuts', '--workdir={full}/sweep'],
}  # fmt: skip


@pytest.fixture(scope='module')
def places(full, finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp('read')
    shutil.copytree(finished.workdir, folder / 'run')
    Image.fromarray(np.zeros((12, 12, 3), np.uint8)).save(folder / 'image.png')
    weights = folder / 'weights.safetensors'
    export_weights(finished.workdir, weights)
    return {
        'full': full, 'run': folder / 'run', 'image': folder / 'image.png', 'weights': weights
    }  # fmt: skip


@pytest.mark.parametrize('name', COMMANDS)
def test_a_command_names_the_file_that_did_not_fit(name, places):
    before = list_files(places['full'])
    with pytest.raises((OSError, RunError)) as caught:
        new = places['full'] / f'new, {name}'
        main([word.format(new=new, **places) for word in COMMANDS[name]])
    said = str(caught.value)
    assert str(places['full']) in said
    assert 'No space left on device' in said or 'make room' in said
    changed = {k: v for k, v in list_files(places['full']).items() if before.get(k) != v}
    assert not [path for path, (size, _) in changed.items() if size]


def _run(arguments, out, err):
    for stream, path in ((sys.stdout, out), (sys.stderr, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream.fileno())
    sys.argv = ['flaxcls', *arguments]
    run()


def _train(workdir, folder):
    """Trains in a process that is forked with everything imported: its exit code and streams."""
    processes = multiprocessing.get_context('forkserver')
    processes.set_forkserver_preload(['flaxcls.commands.train', 'orbax.checkpoint', __name__])
    out, err = folder / 'out', folder / 'err'
    arguments = ['train', '--config=default', *SMALL, f'--workdir={workdir}']
    process = processes.Process(target=_run, args=(arguments, out, err))
    process.start()
    process.join()
    return process.exitcode, out.read_text(), err.read_text()


def _sha256(printed):
    return printed.partition('state sha256 ')[2].split()


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
    """A run with room enough: the words after its sha256, and what it has written."""
    folder = tmp_path_factory.mktemp('straight')
    code, printed, _ = _train(folder / 'run', folder)
    assert code == 0
    return _sha256(printed)[0], sum(size for size, _ in list_files(folder / 'run').values())


@pytest.mark.parametrize('name', ['train', 'import', 'precise-bn'])
def test_what_fails_at_any_of_its_files_is_begun_anew(name, places, tmp_path, monkeypatch):
    """As when the disk is full, or the process killed, before the file has its name."""
    left, replace = [], pathlib.Path.replace

    def fail_at_the_last(path, target):
        if not left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        left.pop()
        return replace(path, target)

    count = 0
    while True:
        new = tmp_path / str(count)
        command = [word.format(new=new, **places) for word in COMMANDS[name]]
        left[:] = [None] * count
        with monkeypatch.context() as context:
            context.setattr(pathlib.Path, 'replace', fail_at_the_last)
            try:
                main(command)
            except OSError as error:
                assert error.errno == errno.ENOSPC
            else:
                break
        main(command)
        count += 1
    assert count > 2


def test_a_disk_that_fills_while_a_run_trains_loses_nothing(seed, disk, straight, tmp_path):
    """Somewhere between the first file and the last checkpoint."""
    sha256, size = straight
    rng = np.random.default_rng(seed)
    for _ in range(draws(1)):
        disk.empty()
        disk.resize(int(rng.integers(size)))
        code, _, said = _train(disk.folder / 'run', tmp_path)
        assert (code, said.count('\n')) == (1, 1), said
        assert str(disk.folder) in said
        assert 'No space left' in said or 'make room' in said
        disk.resize(LARGE)
        assert _sha256(_train(disk.folder / 'run', tmp_path)[1])[0] == sha256
