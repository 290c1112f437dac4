"""Writing a file whole or not at all, a folder's lock, and the folder of caches."""

import errno
import fcntl
import os
import pathlib
import subprocess
import sys

import pytest

from flaxcls.errors import UserError
from flaxcls.system.files import folder_lock, locked_folder, user_cache_path, write_atomically


def test_a_file_is_the_old_one_or_the_new_one(tmp_path, monkeypatch):
    path = tmp_path / 'file'
    write_atomically(path, 'ö')
    assert path.read_bytes() == 'ö'.encode()

    def fail(_):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', fail)
    with pytest.raises(OSError) as caught:
        write_atomically(path, b'new')
    assert caught.value.filename == str(path)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == ['ö'.encode()]


def test_a_device_is_written_to_and_stays(tmp_path):
    (tmp_path / 'link').symlink_to('/dev/full')
    with pytest.raises(OSError) as caught:
        write_atomically(tmp_path / 'link', b'new')
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / 'link'))
    assert (tmp_path / 'link').readlink() == pathlib.Path('/dev/full')
    assert pathlib.Path('/dev/full').is_char_device()


def test_a_lock_is_for_one_and_ends_with_its_process(tmp_path):
    hold = 'from flaxcls.system.files import *\n'
    hold += f'lock = folder_lock(pathlib.Path({str(tmp_path)!r})).acquire()\n'
    hold += 'print(flush=True)\ninput()'
    command = [sys.executable, '-c', hold]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    holder.stdout.readline()
    another = pytest.raises(UserError, match='another run is training in')
    with another, locked_folder(tmp_path, 'run is training'):
        pass
    holder.kill()
    holder.communicate()
    with locked_folder(tmp_path, 'run is training'), pytest.raises(TimeoutError):
        folder_lock(tmp_path).acquire(blocking=False)
    folder_lock(tmp_path).acquire(blocking=False).lock.release()


@pytest.mark.parametrize('code', [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_folder_that_cannot_be_locked_is_used_with_a_note(tmp_path, monkeypatch, capsys, code):
    def fail(*_):
        raise OSError(code, 'no such thing')

    monkeypatch.setattr(fcntl, 'flock', fail)
    for _ in range(2):  # Nothing stays behind that would keep the second one out.
        with locked_folder(tmp_path / 'run', 'run is training'):
            assert 'cannot be locked (no such thing)' in capsys.readouterr().out


def test_caches_are_where_they_were(monkeypatch):
    name = '2c26b46b68ffc68f'
    monkeypatch.setenv('XDG_CACHE_HOME', '/somewhere')
    assert user_cache_path('npm', 'foo') == pathlib.Path('/somewhere/flaxcls/npm', name)
    monkeypatch.setenv('XDG_CACHE_HOME', '')
    expected = pathlib.Path('~/.cache/flaxcls/npm', name).expanduser()
    assert user_cache_path('npm', 'foo') == expected or sys.platform != 'linux'
