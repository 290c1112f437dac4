"""Every command of README.md and docs/ does what it says, as it is written there.

The commands of a section of README.md, or of a page of docs/, run one after another in a folder
that has what they name. What would take long runs with the arguments of LONG behind its own; what
another test or CI executes is in ELSEWHERE; and nothing is left out.
"""

import contextlib
import csv
import importlib
import importlib.util
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import types
import urllib.request

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import flaxcls
from benchmarks.parity_cases import make_tensor
from flaxcls.config.files import default_workdir
from flaxcls.errors import RunError
from flaxcls.exporting import web
from flaxcls.exporting.formats import FORMATS
from flaxcls.models.registry import MODELS, create_model
from flaxcls.system.cli import parse_overrides
from flaxcls.weights.state_dict import torch_layout
from tests.helpers.configs import TINY
from tests.helpers.converters import need_converter
from tests.helpers.documents import DOCUMENTS, ROOT, code, commands, parse, write_file
from tests.helpers.environment import with_devices

_SMALL_RESNET = '--config.model.stage_sizes=1,1 --config.model.width_multiplier=0.0625'
_SMALL_DENSENET = '--config.model.block_sizes=1,1 --config.model.growth_rate=4'
_DIGITS = f'{_SMALL_RESNET} --config.data.image_size=8'
_OWN = f'{_SMALL_RESNET} --config.data.image_size=32'

# What of a command -> arguments behind its own, for a run of seconds; the first that fits counts.
LONG = [
    (
        r'train .*model\.name=se_resnet',
        '--config.model.stage_sizes=1,1 --config.data.image_size=8 --config.num_epochs=1',
    ),
    (r'train --config=my_experiment', '--config.model.stage_sizes=1'),
    (r'train --config=\S*digits_resnet20', f'{_DIGITS} --config.num_epochs=1'),
    (
        r'(train|main) --config=\S*densenet121',
        f'{_SMALL_DENSENET} --config.num_epochs=1 --config.data.source=digits '
        '--config.data.image_size=32 --config.augment.crop_on=device',
    ),
    (
        r'train --config=cifar10_resnet',
        f'{_DIGITS} --config.num_epochs=1 --config.data.source=digits',
    ),
    (
        r'train --config=resnet50$',
        f'{_OWN} --config.num_epochs=2 --config.data.source=folder:photos --config.batch_size=64',
    ),
    (r'train --config=\S*resnet50', f'{_OWN} --config.num_epochs=2'),
    (r'data show --config=resnet50', _OWN),
    (r'weights import .*resnet50', _OWN),
    (r'plan .*densenet121', f'{_SMALL_DENSENET} --config.data.image_size=32'),
    (r'plan .*digits_resnet20', _DIGITS),
    (r'flaxcls sweep ', '--dry_run'),  # test_sweep.py and a notebook run some whole.
    (
        r'benchmarks\.nnx_step',
        '--models=resnet20 --image_size=8 --batch_size=2 --steps=1 --rounds=1',
    ),
    (r'flaxcls benchmark', f'--steps=1 --rounds=2 {_DIGITS}'),
]

# Servers: what of a command -> its argument for a port, and an address that responds.
SERVERS = {
    r'flaxcls serve ': ('--port={port}', 'health'),
    r'http\.server ': ('{port}', ''),
}

# The beginning of a command, without quotes -> who executes it: a file, and what stands there.
WEEKLY = '.github/workflows/weekly.yml'
ELSEWHERE = {
    r'make (demo|test|test-slow|lint)$': ('.ci/run', r'^make {0}$'),
    r'make (test-weekly|parity|bench-input|bench-torch)$': (WEEKLY, r'run: make {0}\b'),
    r'make (test-newest)$': ('.github/workflows/ci.yml', r'run: make {0}$'),
    r'make (docs)$': ('tests/config/test_options.py', r'option_reference\.main'),
    r'flaxcls train .*(--coordinator=)': ('tests/training/test_processes.py', r'{0}'),
    r'pip install (?:-q )?(?:\.|flaxcls|\./flaxcls)\[(\w+)\]': (WEEKLY, r'extra: \[.*\b{0}\b'),
    r'pip install \.\[(onnx,serve,tflite)\]': ('Makefile', r"-e '\.\[test,{0}\]'"),
    r'pip install (--no-build-isolation --no-deps) \.$': ('Makefile', r'{0} -e \.$'),
    r'pip install \.$': (WEEKLY, r'pip install \.$'),
    r'git clone ': ('.github/workflows/ci.yml', 'actions/checkout'),
    r'apt-get install (dataset-fashion-mnist)': ('.ci/run', r'packages=.*\b{0}\b'),
    r'sbatch .*(experiments/slurm/train\.sh)': ('tests/training/test_slurm.py', r"SCRIPT = '{0}'"),
    r'(flaxcls plan .*--target=tpu:\S+)': (WEEKLY, r'{0}$'),
    r'python -m (benchmarks\.vs_torch)': ('Makefile', r'python -m {0}$'),
}

# Packages of extras that not every environment of the tests has.
NEEDS = {
    r'--format=onnx': ('onnx', 'onnxruntime'),
    r'--format=web': ('onnx', 'onnxruntime'),
    r'exported/run\.py': ('onnxruntime',),
    r'--format=tflite': ('ai_edge_litert', 'ai_edge_quantizer'),
    r'flaxcls serve': ('starlette', 'uvicorn', 'prometheus_client'),
}

SEQUENCES = [
    (document, section)
    for document in DOCUMENTS
    for section in (
        dict.fromkeys(piece.section for piece in code(document))
        if document.name == 'README.md'
        else [None]
    )
]
ENVIRONMENT = with_devices(1) | {'PYTHONPATH': str(ROOT)}


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    """A folder with what the commands name, under the names that they use."""
    world = tmp_path_factory.mktemp('world')
    (world / 'experiments').symlink_to(ROOT / 'experiments')
    (world / 'docs').mkdir()
    shutil.copytree(ROOT / 'results', world / 'results')
    rng = np.random.default_rng(0)

    def draw(name, mode='RGB'):
        path = world / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(path)
        return path

    for name in ('image.jpg', 'a.png', 'b.png', 'folder/a.jpg', 'folder/b.webp', 'digit.png'):
        draw(name)
    rows = []
    for label, suffix in (('cat', 'jpg'), ('dog', 'png'), ('fox', 'webp')):
        for split, count in (('train', 40), ('val', 8)):
            names = [f'photos/{split}/{label}/{index}.{suffix}' for index in range(count)]
            rows += [(draw(name).relative_to(world), label, split) for name in names]
    (world / 'imagenet').symlink_to('photos')
    with open(world / 'labels.csv', 'w', newline='', encoding='utf-8') as file:
        csv.writer(file).writerows([('path', 'label', 'split'), *rows])
    _write_fashion_mnist(world / 'DIR', rng)
    _write_torch_weights(world / 'resnet50.safetensors')
    for seed, name in enumerate(('RUN', 'OTHER')):
        config = flaxcls.load_config(None, TINY | {'num_epochs': 1, 'seed': seed})
        flaxcls.train_and_evaluate(config, world / name)
    shutil.copytree(world / 'OTHER', world / 'runs/earlier')
    return world


def _write_fashion_mnist(folder, rng):
    folder.mkdir()
    for prefix, count in (('train', 30), ('t10k', 20)):
        header = np.array([2051, count, 28, 28], '>i4').tobytes()
        pixels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (folder / f'{prefix}-images-idx3-ubyte').write_bytes(header + pixels.tobytes())
        header = np.array([2049, count], '>i4').tobytes()
        labels = np.arange(count, dtype=np.uint8) % 10
        (folder / f'{prefix}-labels-idx1-ubyte').write_bytes(header + labels.tobytes())


def _write_torch_weights(path):
    model = create_model('resnet50', num_classes=3, stage_sizes=(1, 1), width_multiplier=0.0625)
    entries = torch_layout(model, MODELS['resnet50'].image_size)
    state = {entry.key: make_tensor(entry.key, entry.shape) for entry in entries}
    safetensors.numpy.save_file(state, path)


@pytest.fixture
def here(world, tmp_path, monkeypatch):
    """A copy of the world, which is the working directory; signals are handled as before."""
    shutil.copytree(world, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    handlers = {number: signal.getsignal(number) for number in numbers}
    yield tmp_path
    for number, handler in handlers.items():
        signal.signal(number, handler)


@contextlib.contextmanager
def _nothing_is_downloaded():
    """Lets TFDS's builders prepare nothing, so that all before and after them is executed."""
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)

    def builder(name, *, data_dir, file_format):
        assert name in known
        assert file_format == 'array_record'
        return types.SimpleNamespace(download_and_prepare=lambda *, download_config: None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, 'tensorflow', types.ModuleType('tensorflow'))
        patch.setattr(tfds, 'builder', builder)
        yield


@pytest.mark.parametrize(('document', 'section'), SEQUENCES, ids=str)
def test_commands_work_as_they_are_written(document, section, here, monkeypatch):
    pieces = [piece for piece in code(document) if section in (None, piece.section)]
    for piece in pieces:
        if piece.language == 'python' and not write_file(piece, here):
            _run_python(piece.text, monkeypatch)
        for line in commands(piece):
            for command in parse(line):
                print(f'$ {command}', flush=True)
                _execute(command, line)


def _execute(command, line):
    if _is_elsewhere(str(command)):
        return
    for pattern, names in NEEDS.items():
        missing = [name for name in names if importlib.util.find_spec(name) is None]
        if missing and re.search(pattern, str(command)):
            pytest.skip(f'{command} needs {", ".join(missing)}')
    for converter in _converters(command):
        need_converter(converter)
    if '--format=web' in command.arguments:
        try:
            web.read_runtime(None)
        except RunError as error:  # There is no network.
            pytest.skip(str(error))
    program, *arguments = command.arguments
    extra = next((more for pattern, more in LONG if re.search(pattern, str(command))), '')
    arguments += [*shlex.split(extra), *(_own_workdir(arguments) if extra else [])]
    server = next((s for pattern, s in SERVERS.items() if re.search(pattern, str(command))), None)
    if program == 'flaxcls':
        arguments = ['-m', 'flaxcls', *arguments]
        program = 'python'
    assert program == 'python', f'{command} is executed by no test, and ELSEWHERE names no place'
    if server:
        _serve(arguments, *server, line.partition('#')[2].strip())
    elif command.environment or arguments[0] != '-m' or not arguments[1].startswith('flaxcls'):
        environment = ENVIRONMENT | command.environment
        subprocess.run([sys.executable, *arguments], env=environment, check=True)
    elif re.search(r'data prepare --name=(?!fashion_mnist)', str(command)):
        with _nothing_is_downloaded():
            _run_main(*arguments[1:])
    else:
        _run_main(*arguments[1:])


def _converters(command):
    """Returns what an export is converted with; nothing of other commands."""
    names = [argument.removeprefix('--format=') for argument in command.arguments]
    return [
        FORMATS[name].converter for name in names if name in FORMATS and FORMATS[name].converter
    ]


def _own_workdir(arguments):
    """Returns the flag for where the run would live without the arguments of LONG."""
    shown = [argument for argument in arguments if argument.startswith('--workdir')]
    if arguments[0] != 'train' or shown:
        return []
    (path,) = [a.partition('=')[2] for a in arguments if a.startswith('--config=')]
    overrides = parse_overrides([a for a in arguments if a.startswith('--config.')], [])
    return [f'--workdir={default_workdir(path, overrides)}']


def _is_elsewhere(command):
    """Returns whether ELSEWHERE has the command, which the place it names has to have as well."""
    for pattern, (path, expression) in ELSEWHERE.items():
        if match := re.match(pattern, command.replace("'", '')):
            expression = expression.format(*map(re.escape, match.groups()))
            text = (ROOT / path).read_text(encoding='utf-8')
            assert re.search(expression, text, re.MULTILINE), f'{path} executes no {command}'
            return True
    return False


def _run_main(module, *arguments):
    """Runs `python -m module arguments` within this process."""
    if importlib.util.find_spec(module).submodule_search_locations is not None:
        module = f'{module}.__main__'
    try:
        importlib.import_module(module).main([*arguments])
    except SystemExit as end:  # As --help ends.
        assert not end.code


def _run_python(text, monkeypatch):
    """Runs a block with small networks, and with `images` as the text says that there are."""
    load_config, create = flaxcls.load_config, flaxcls.create_model

    def load_small(path=None, overrides=None):
        return load_config(
            path, {k: v for k, v in TINY.items() if 'model' in k} | (overrides or {})
        )

    def create_small(name, **options):
        small = {'block_sizes': (1, 1)} if name.startswith('densenet') else {'stage_sizes': (1, 1)}
        return create(name, **small | options)

    monkeypatch.setattr(flaxcls, 'load_config', load_small)
    monkeypatch.setattr(flaxcls, 'create_model', create_small)
    exec(text, {'images': np.zeros((2, 32, 32, 3), np.float32)})


def _serve(arguments, port_argument, path, request):
    """Starts a server at a free port, sends what the comment beside it says, and stops it."""
    with socket.create_server(('127.0.0.1', 0)) as probe:
        port = probe.getsockname()[1]
    arguments = [*arguments, port_argument.format(port=port)]
    process = subprocess.Popen([sys.executable, *arguments], env=ENVIRONMENT)
    try:
        _wait_for(f'http://127.0.0.1:{port}/{path}', process)
        if request.startswith('curl'):
            request = shlex.split(request.replace(':8000/', f':{port}/'))
            response = subprocess.run([*request, '--fail'], capture_output=True, check=True)
            assert b'predictions' in response.stdout
    finally:
        process.terminate()
        process.wait(60)


def _wait_for(address, process):
    for _ in range(600):
        assert process.poll() is None, 'the server has ended'
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=10) as response:
            assert response.status == 200
            return
        time.sleep(0.1)
    pytest.fail(f'{address} does not respond')


@pytest.mark.parametrize(
    ('line', 'says'),
    [
        ('cargo build', 'is executed by no test'),
        ('make everything', 'is executed by no test'),
        ("pip install '.[none]'", 'executes no pip install'),
        ("pip install '.[cuda,none]'", 'is executed by no test'),
        ('make test-everything', 'is executed by no test'),
    ],
)
def test_a_command_that_nobody_executes_is_found(line, says):
    with pytest.raises(AssertionError, match=says):
        _execute(*parse(line), line)
