"""Converters whose bounds would hold back what the rest needs, kept in folders of their own.

jax2onnx wants an old Orbax, and litert-converter an old xdsl, which bounds immutabledict and
typing-extensions; neither takes them for what is done here. So pip is asked for the converter
alone, once, at the version that was tested. Its folder in the user's cache goes to the end of
sys.path, where it hides nothing.
"""

import importlib
import importlib.util
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import tempfile

import platformdirs

from flaxcls.errors import RunError
from flaxcls.system.files import shorten

# Module -> what pip is asked for: the converter, and what it imports that flaxcls[onnx,tflite] does
# not bring.
CONVERTERS = {
    'jax2onnx': ('jax2onnx==0.17.1', 'onnx-ir==1.1.0', 'sympy==1.14.0', 'mpmath==1.3.0'),
    'litert_converter': ('litert-converter==0.5.0',),
}


def require_converter(module: str) -> None:
    """Makes a converter importable, which may mean to fetch it.

    Args:
      module: a row of CONVERTERS. One that is installed is taken as it is.

    Raises:
      RunError: it is not there and cannot be fetched.
    """
    if importlib.util.find_spec(module) is not None:
        return
    folder = folder_of(module)
    if not folder.is_dir():
        try:
            _make(module, folder)
        except OSError as error:
            raise RunError(_failure(module, f'{error.strerror}: {folder.parent}')) from None
    sys.path.append(str(folder))
    importlib.invalidate_caches()


def folder_of(module: str) -> pathlib.Path:
    """Returns where a converter is kept, for this Python on this platform; it need not exist."""
    packages = ' '.join(CONVERTERS[module])
    python = f'{sys.implementation.cache_tag}-{sysconfig.get_platform()}'
    name = f'{CONVERTERS[module][0].replace("==", "-")}-{python}'
    return platformdirs.user_cache_path('flaxcls') / 'converters' / shorten(name, packages + python)


def by_hand(module: str) -> str:
    """Returns the command that installs a converter where the other packages are."""
    return f'pip install --no-deps {" ".join(CONVERTERS[module])}'


def find_installer(module: str) -> list[str]:
    """Returns the beginning of a command that installs wheels, without what they want besides.

    Raises:
      RunError: there is neither pip nor uv.
    """
    options = ['install', '--no-deps', '--only-binary=:all:']
    if importlib.util.find_spec('pip') is not None:
        # Not all of sympy is compiled, which takes longer than to fetch it.
        options += ['--no-compile', '--disable-pip-version-check']
        return [sys.executable, '-m', 'pip', *options]
    if uv := shutil.which('uv'):  # Which makes environments without pip.
        return [uv, 'pip', *options, '--python', sys.executable]
    raise RunError(_failure(module, f'{sys.executable} has no pip, and there is no uv'))


def _make(module: str, folder: pathlib.Path) -> None:
    """Makes the folder, whole or not at all."""
    print(f'Fetching {CONVERTERS[module][0].replace("==", " ")}, once ...', flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='.', dir=folder.parent) as beside:
        new = pathlib.Path(beside, 'new')
        done = subprocess.run(
            [*find_installer(module), '--target', str(new), *CONVERTERS[module]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RunError(_failure(module, _last_words(done.stderr + done.stdout)))
        try:
            new.rename(folder)
        except OSError:
            if not folder.is_dir():  # Else another process has been faster.
                raise


def _last_words(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith('error')]
    return (errors or lines or ['pip says nothing'])[-1].rstrip('.')


def _failure(module: str, reason: str) -> str:
    return (
        f'{CONVERTERS[module][0].replace("==", " ")} cannot be fetched ({reason}); run  '
        f'{by_hand(module)}  yourself, or name a Python that has it with --export_python=PYTHON.'
    )
