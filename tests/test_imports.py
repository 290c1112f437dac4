"""What a module may import, and what an import costs."""

import ast
import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

# Each may import those before it, and its own package.
ORDER = [
    {'errors'},
    {'system'},
    {'config'},
    {'augment', 'data', 'ops'},
    {'models'},
    {'weights'},
    {'training'},
    {'inference'},
    {'evaluation', 'explaining', 'exporting', 'planning', 'serving'},
    {'reporting'},
    {'sweeping'},
    {'commands'},
    {'main', '__main__'},
]
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}
FILES = sorted(pathlib.Path('flaxcls').rglob('*.py'))
EVERYWHERE = [
    path
    for folder in ('flaxcls', 'benchmarks', 'experiments', 'notebooks', 'tests')
    for path in sorted(pathlib.Path(folder).rglob('*.py'))
]


def _imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith('flaxcls'):
            parts = node.module.split('.')[1:]
            yield from [parts[0]] if parts else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith('flaxcls.'):
                    yield alias.name.split('.')[1]


@pytest.mark.parametrize('path', FILES, ids=str)
def test_imports_point_one_way(path):
    group = path.parts[1].removesuffix('.py')
    if group == '__init__':
        assert list(_imported(path)) == []  # It loads the rest on first use.
        return
    for name in _imported(path):
        assert name == group or LEVEL[name] < LEVEL[group], f'{path} imports {name}'


@pytest.mark.parametrize('path', EVERYWHERE, ids=str)
def test_names_that_are_imported_from_flaxcls_exist(path):
    """Within functions as well, which no test may call."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('flaxcls'):
            module = importlib.import_module(node.module)
            for alias in node.names:
                exists = hasattr(module, alias.name) or importlib.util.find_spec(
                    f'{node.module}.{alias.name}'
                )
                assert exists, f'{path} imports {alias.name} from {node.module}'


# As are other processes.
_REFUSED_ONCE_DEVICES_ARE_TAKEN = 'import jax; jax.config.update("jax_num_cpu_devices", 3)'


def _modules_after(code):
    # The flags name a number of devices, beside which no other may be set.
    listing = f'{code}; import sys; print(" ".join(sys.modules))'
    environment = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
    result = subprocess.run(
        [sys.executable, '-c', listing], env=environment, capture_output=True, check=False
    )
    assert result.returncode == 0, result.stderr.decode()
    return set(result.stdout.decode().split())


def test_importing_flaxcls_loads_nothing_heavy():
    heavy = {'jax', 'numpy', 'tensorflow', 'flax', 'sklearn', 'matplotlib', 'orbax'}
    assert not _modules_after('import flaxcls') & heavy


def test_whoever_stays_with_linen_does_not_load_nnx():
    assert 'flax.nnx' not in _modules_after('import flaxcls; flaxcls.create_model("resnet20")')


def test_no_module_needs_tensorflow_or_torch_or_takes_the_devices():
    names = ['.'.join(path.with_suffix('').parts) for path in FILES]
    imports = '; '.join(f'import {name}' for name in names)
    loaded = _modules_after(f'{imports}; {_REFUSED_ONCE_DEVICES_ARE_TAKEN}')
    assert not loaded & {'tensorflow', 'torch', 'tensorboardX'}


def test_networks_are_described_without_taking_the_devices():
    """Which another run may hold, or be about to."""
    describe = (
        'from flaxcls.planning import networks as t; t.model_table(); t.layer_table("resnet20")'
    )
    _modules_after(f'{describe}; {_REFUSED_ONCE_DEVICES_ARE_TAKEN}')


def test_every_public_name_exists():
    import flaxcls

    for name in flaxcls.__all__:
        assert getattr(flaxcls, name) is not None
    with pytest.raises(AttributeError, match='no attribute'):
        flaxcls.no_such_name  # noqa: B018
