"""Files of LiteRT, beside what tests/exporting/test_export.py asks of every format."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcls.errors import RunError, UserError
from flaxcls.exporting import run, tflite
from tests.helpers.converters import need_converter

for module in tflite.MODULES:
    pytest.importorskip(module, reason=f'{module} is not installed; see flaxcls.exporting.tflite')
from ai_edge_litert.interpreter import Interpreter  # noqa: E402


@pytest.fixture(autouse=True, scope='module')
def converter():
    need_converter('litert_converter')


def _images(count, side):
    return np.random.default_rng(count).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def _read(path):
    """Returns images -> probabilities, of a .tflite file."""
    return run.load(str(path))


def test_int8_weights_take_a_quarter_of_the_file(tmp_path):
    kernel = np.random.default_rng(0).normal(0, 0.02, (48, 3000)).astype(np.float32)

    def function(images):
        hidden = jax.nn.relu(images.reshape(-1, 48).astype(jnp.float32) @ kernel)
        return jax.nn.softmax(hidden @ kernel.T)

    exact = tflite.write_tflite(function, 4, tmp_path / 'float.tflite')
    path = tflite.write_tflite(function, 4, tmp_path / 'int8.tflite', int8=True)
    assert path.stat().st_size < 0.3 * exact.stat().st_size
    images = _images(7, 4)
    np.testing.assert_allclose(_read(exact)(images), function(images), rtol=0, atol=1e-4)
    assert 1e-6 < np.abs(_read(path)(images) - function(images)).max() < 0.25


def test_outputs_keep_their_names(tmp_path):
    function = lambda images: {  # noqa: E731
        'probabilities': jax.nn.softmax(images.mean((1, 2))),
        'maps': images.astype(jnp.float32) / 255,
    }
    path = tflite.write_tflite(function, 4, tmp_path / 'model.tflite')
    interpreter = Interpreter(str(path))
    (signature,) = interpreter.get_signature_list().values()
    assert set(signature['outputs']) == {'probabilities', 'maps'}
    images = _images(3, 4)
    np.testing.assert_allclose(
        _read(path)(images), function(images)['probabilities'], rtol=0, atol=1e-5
    )


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


def test_a_loop_is_refused(tmp_path):
    function = lambda images: jax.lax.fori_loop(0, 5, lambda _, x: x + x.sum(), images.mean((1, 2)))  # noqa: E731
    with pytest.raises(RunError, match='cannot have a loop'):
        tflite.write_tflite(function, 4, tmp_path / 'model.tflite')


def test_files_that_cannot_be_written_are_reported_first(tmp_path):
    for path in (tmp_path, tmp_path / 'missing' / 'model.tflite'):
        with pytest.raises(UserError, match='folder'):
            tflite.write_tflite(None, 4, path)


@pytest.mark.parametrize('name', ['litert_converter.mlir', 'ai_edge_quantizer.quantizer'])
def test_a_missing_extra_is_a_sentence(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=f'takes {name}; pip install'):
        tflite.write_tflite(None, 4, tmp_path / 'model.tflite')
