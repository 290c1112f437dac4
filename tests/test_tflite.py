"""Files of LiteRT against JAX, run by the script that travels with them."""

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import path_aware_map

import flaxcls
from flaxcls import steps
from flaxcls.errors import RunError, UserError
from flaxcls.exporting import run_tflite, tflite
from flaxcls.models import model_from_config

EXTRA = ('litert_converter', 'ai_edge_litert', 'ai_edge_quantizer')
SIDE = {'alexnet_2012': 67, 'alexnet': 100}
NETWORKS = {
    'resnet20': {'stage_sizes': (1, 1, 1), 'shortcut': 'A'},
    'resnet18': {'stage_sizes': (1, 1), 'width_multiplier': 0.25},
    'resnet50_d': {'stage_sizes': (1, 1), 'width_multiplier': 0.25},
    'resnext50_32x4d': {'stage_sizes': (1, 1)},
    'resnet18_v2': {'stage_sizes': (1, 1), 'width_multiplier': 0.25},
    'densenet121': {'block_sizes': (1, 2), 'growth_rate': 8},
    'densenet_40_12': {'block_sizes': (1, 2)},
    'alexnet': {'width_multiplier': 0.05},
    'alexnet_2012': {'width_multiplier': 0.1, 'lrn': 'paper', 'initializer': 'he'},
    'vgg16_bn': {'width_multiplier': 0.05},
}


@pytest.fixture(autouse=True, scope='module')
def extra():
    """Skips what cannot be run."""
    for name in EXTRA:
        pytest.importorskip(name, reason=f'{name} is not installed; see flaxcls.exporting.tflite')


def _function(name, **overrides):
    """Returns images -> probabilities, of a network in which no statistic is 0 or 1."""
    options = {f'model.{option}': value for option, value in NETWORKS[name].items()}
    config = flaxcls.load_config(
        None,
        {'model.name': name, 'data.source': 'digits', 'data.image_size': SIDE.get(name, 32)}
        | {'model.num_classes': 10}
        | options
        | overrides,
    )
    model = model_from_config(config)
    variables = model.init(
        jax.random.key(0), jnp.zeros((1, *[config.data.image_size] * 2, 3)), train=False
    )
    rng = np.random.default_rng(0)
    variables = path_aware_map(
        lambda path, x: (
            np.asarray(x) + rng.uniform(0.1, 0.5, x.shape).astype(np.float32)
            if path[-1] in ('mean', 'var', 'scale', 'bias')
            else np.asarray(x)
        ),
        variables,
    )
    classify = steps.make_classify(config, model)
    logits = jax.jit(classify)(variables, _images(16, config.data.image_size))
    # Differences between images, which those of the classes would hide.
    spread = jnp.std(logits - logits.mean(0))

    def function(images):
        return jax.nn.softmax((classify(variables, images) - logits.mean(0)) / spread)

    return function, config.data.image_size


def _images(count, side):
    return np.random.default_rng(count).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def _run(path, images, folder, *flags):
    """Returns the probabilities and the summary that the script gives, in a process of its own."""
    np.save(folder / 'images.npy', images)
    files = [str(file) for file in (path, folder / 'images.npy', folder / 'probabilities.npy')]
    # As it lies beside an exported network: without flaxcls.
    script = folder / 'run_tflite.py'
    script.write_bytes(pathlib.Path(run_tflite.__file__).read_bytes())
    result = subprocess.run(
        [sys.executable, script, *files, '--repeats=1', *flags], capture_output=True, cwd=folder
    )
    if result.returncode:
        return None, result.stderr.decode()
    return np.load(files[2]), json.loads(result.stdout)


@pytest.mark.parametrize('name', NETWORKS)
def test_a_file_agrees_with_jax_for_any_batch(name, tmp_path):
    function, side = _function(name)
    path = tflite.write_tflite(function, side, tmp_path / 'model.tflite')
    interpreter = run_tflite.load(str(path))
    for count in (7, 1):
        images = _images(count, side)
        found, expected = run_tflite.classify(interpreter, images), jax.jit(function)(images)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert np.ptp(expected) > 0.05


def test_the_script_runs_batches_that_do_not_divide_the_images(tmp_path):
    function, side = _function('resnet20')
    path = tflite.write_tflite(function, side, tmp_path / 'model.tflite')
    images = _images(7, side)
    found, summary = _run(path, images, tmp_path, '--batch-size=3')
    np.testing.assert_allclose(found, jax.jit(function)(images), rtol=0, atol=1e-4)
    assert found.dtype == np.float32
    assert summary['images'] == 7
    assert summary['milliseconds_per_image'] > 0


def test_int8_weights_take_a_quarter_of_the_file(tmp_path):
    function, side = _function('resnet20', **{'model.width_multiplier': 4})
    exact = tflite.write_tflite(function, side, tmp_path / 'float.tflite')
    path = tflite.write_tflite(function, side, tmp_path / 'int8.tflite', int8=True)
    assert path.stat().st_size < 0.3 * exact.stat().st_size
    images = _images(7, side)
    found, _ = _run(path, images, tmp_path)
    expected = jax.jit(function)(images)
    assert 1e-6 < np.abs(found - expected).max() < 0.25


def test_outputs_keep_their_names(tmp_path):
    function = lambda images: {  # noqa: E731
        'probabilities': jax.nn.softmax(images.mean((1, 2))),
        'maps': images.astype(jnp.float32) / 255,
    }
    path = tflite.write_tflite(function, 4, tmp_path / 'model.tflite')
    interpreter = run_tflite.load(str(path))
    (signature,) = interpreter.get_signature_list().values()
    assert set(signature['outputs']) == {'probabilities', 'maps'}
    images = _images(3, 4)
    found = run_tflite.classify(interpreter, images)
    np.testing.assert_allclose(found, function(images)['probabilities'], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ('function', 'reason'),
    [
        (
            lambda x: jnp.broadcast_to(jnp.arange(x.shape[0])[:, None], (x.shape[0], 3)) + x.mean(),
            'for batches of any size',
        ),
        (lambda x: jnp.sort(x.astype(jnp.complex64).mean((1, 2))).real, ': Failed'),
    ],
    ids=['values that depend on the batch', 'complex numbers'],
)
def test_what_cannot_be_expressed_is_refused(function, reason, tmp_path):
    with pytest.raises(RunError, match=f'LiteRT cannot express this network.*{reason}'):
        tflite.write_tflite(function, 4, tmp_path / 'model.tflite')
    assert not list(tmp_path.iterdir())


def test_several_crops_are_refused_with_what_to_do(tmp_path):
    function, side = _function('resnet20', **{'data.eval_crops': 'flip'})
    with pytest.raises(RunError, match='crops=center'):
        tflite.write_tflite(function, side, tmp_path / 'model.tflite')


def test_files_that_cannot_be_written_are_told_first(tmp_path):
    for path in (tmp_path, tmp_path / 'missing' / 'model.tflite'):
        with pytest.raises(UserError, match='folder'):
            tflite.write_tflite(None, 4, path)


@pytest.mark.parametrize('name', ['litert_converter.mlir', 'ai_edge_quantizer.quantizer'])
def test_a_missing_extra_is_a_sentence(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=f'takes {name}; pip install'):
        tflite.write_tflite(None, 4, tmp_path / 'model.tflite')


def test_images_of_another_size_are_a_sentence(tmp_path):
    function = lambda images: jax.nn.softmax(images.mean((1, 2)))  # noqa: E731
    path = tflite.write_tflite(function, 4, tmp_path / 'model.tflite')
    for images in (_images(2, 5), _images(2, 4).astype(np.float32), _images(2, 4)[:0]):
        _, message = _run(path, images, tmp_path)
        assert 'the network takes uint8 [N, 4, 4, 3]' in message
        assert 'Traceback' not in message
