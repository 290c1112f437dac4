"""What this run computes on, and with which versions."""

import importlib.metadata
import pathlib
import platform
import subprocess

import jax

import flaxcls
from flaxcls.system.processor import processor_name
from flaxcls.system.threads import count_cores

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax')


def describe_devices() -> str:
    """Returns all devices of the run, as in '8 x TPU v5 lite' or '2 cores of AMD EPYC'."""
    if jax.default_backend() != 'cpu':
        return f'{jax.device_count()} x {jax.devices()[0].device_kind}'
    processes = jax.process_count()
    several = f'{processes} processes, each on ' if processes > 1 else ''
    return several + describe_cores()


def describe_cores() -> str:
    """Returns what this process may use of the processor, as in '2 cores of AMD EPYC'."""
    cores = count_cores()
    return f'{cores} {"core" if cores == 1 else "cores"} of {processor_name()}'


def find_commit() -> str | None:
    """Returns the commit of the code that runs, with '+' where it was changed; None if unknown."""
    folder = pathlib.Path(flaxcls.__file__).parent
    try:
        _git(folder, 'ls-files', '--error-unmatch', '__init__.py')
        changed = _git(folder, 'status', '--porcelain', '--', '.', '../experiments')
        return _git(folder, 'rev-parse', '--short=12', 'HEAD') + ('+' if changed else '')
    except (OSError, subprocess.CalledProcessError):  # Installed from a package, or no git.
        return None


def _git(folder: pathlib.Path, *words: str) -> str:
    # Without its optional locks, since other processes and people use the checkout as well.
    command = ['git', '--no-optional-locks', '-C', str(folder), *words]
    result = subprocess.run(command, capture_output=True, check=True)
    return result.stdout.decode(errors='backslashreplace').strip()


def find_versions() -> dict[str, str]:
    """Returns the versions of Python, flaxcls and the packages that compute."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {'python': platform.python_version(), 'flaxcls': flaxcls.__version__} | versions
