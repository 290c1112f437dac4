"""Eight virtual devices for all tests, a compile cache, and small configs that train in seconds."""

import os
import pathlib
import shutil

from tests.helpers.environment import COMPILED_FAST, INSECURE_HOST, with_devices

# The processes of tests import what the tests do, wherever another flaxcls is installed.
_ROOT = str(pathlib.Path(__file__).resolve().parents[1])
os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [_ROOT, os.environ.get('PYTHONPATH')]))
# Before jax is imported: the devices, and where compiled programs are kept between runs.
for _name, _value in (COMPILED_FAST | {'XLA_FLAGS': with_devices(8)['XLA_FLAGS']}).items():
    os.environ.setdefault(_name, _value)
os.environ['JAX_PLATFORMS'] = 'cpu'
_CACHE = pathlib.Path(os.environ.get('XDG_CACHE_HOME', '~/.cache')).expanduser() / 'flaxcls-tests'
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(_CACHE))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')

import jax  # noqa: E402
import pytest  # noqa: E402

import flaxcls  # noqa: E402
from flaxcls.config import extensions  # noqa: E402
from flaxcls.training import parallel  # noqa: E402
from tests.helpers.configs import TINY, TRAINED  # noqa: E402
from tests.helpers.costs import compiles, is_slow  # noqa: E402
from tests.helpers.runs import common_folder, list_files, train_once  # noqa: E402
from tests.helpers.slurm_cluster import cluster  # noqa: E402, F401 - a fixture


@pytest.hookimpl(tryfirst=True)  # Before -m looks at the markers.
def pytest_collection_modifyitems(items):
    for item in items:
        path = item.path.relative_to(pathlib.Path(__file__).parent).as_posix()
        if compiles(path, item.name, set(item.fixturenames)):
            item.add_marker('compiles')
        if is_slow(path, item.name):
            item.add_marker('slow')


@pytest.fixture(autouse=True)
def nothing_is_trained_unmarked(request, monkeypatch):
    """Keeps `make check` short."""
    if not request.node.get_closest_marker('compiles'):
        message = 'a test that trains is to be named in tests/helpers/costs.py'
        monkeypatch.setattr(parallel, 'parallelize_train_step', lambda *_: pytest.fail(message))


@pytest.fixture(scope='session', autouse=True)
def all_devices():
    """Leaves two devices to those who do not ask for all of them, since each costs time."""
    devices = jax.devices()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, 'devices', lambda: devices[:2])
        yield devices


@pytest.fixture(scope='module')
def extensions_unloaded():
    """Keeps what sweeps and experiments register within a file, and from being trusted later."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(extensions.TRUST, '1')
        yield
    extensions.unload_all()


@pytest.fixture
def tiny_config():
    """Returns overrides -> a config that trains on digits in a second or two."""
    return lambda **overrides: flaxcls.load_config(
        None, TINY | {key.replace('__', '.'): value for key, value in overrides.items()}
    )


@pytest.fixture(scope='session')
def finished(tmp_path_factory):
    """The finished run that most tests look at, and none writes into."""
    yield from _shared_run(tmp_path_factory, 'ünder a space', TRAINED)


@pytest.fixture(scope='session')
def finished_other(tmp_path_factory):
    """Another one, of another network and seed, on the same images."""
    other = {'seed': 1, 'num_epochs': 1, 'model.width_multiplier': 0.125}
    yield from _shared_run(tmp_path_factory, 'other', TRAINED | other)


def _shared_run(tmp_path_factory, name, options):
    run = train_once(common_folder(tmp_path_factory), name, options)
    before = list_files(run.workdir)
    yield run
    assert list_files(run.workdir) == before, 'a test has written into a run that all look at'


@pytest.fixture
def workdir(finished, tmp_path_factory):
    """A copy of the finished run's, for tests that may write into it."""
    return shutil.copytree(finished.workdir, tmp_path_factory.mktemp('run') / 'finished')


@pytest.fixture(scope='session')
def classifier(finished):
    """That of the finished run."""
    from flaxcls.inference.classifier import Classifier

    return Classifier.load(finished.workdir)


@pytest.fixture
def write_images(tmp_path):
    """Returns {relative path: (height, width)} -> the folder, with a noise image in each path."""
    import numpy as np
    from PIL import Image

    def write(sizes):
        rng = np.random.default_rng(0)
        for name, (height, width) in sizes.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
        return tmp_path

    return write


@pytest.fixture(scope='module')
def browser():
    """Chromium, driven by playwright; skips where it is not installed."""
    executable = shutil.which('chromium')
    if executable is None:
        pytest.skip('there is no Chromium; apt-get install chromium')
    from playwright.sync_api import sync_playwright

    # The sandbox needs rights that a container has not.
    options = ['--no-sandbox', f'--host-resolver-rules=MAP {INSECURE_HOST} 127.0.0.1']
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=options)
        yield browser
        browser.close()
