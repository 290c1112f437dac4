"""An export that JAX no longer reads is a sentence, where there is no flaxcls."""

import datetime
import hashlib
import json
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcls.exporting import run
from flaxcls.exporting.jax_promise import BUILT, readable_until
from flaxcls.system.host_info import find_versions

# How it was made is in the README.md beside it.
OLD = pathlib.Path(__file__).parents[1] / 'goldens/stablehlo/jax-0.4.30.stablehlo'
OF_OLD = {'versions_of_export': {'jax': '0.4.30'}, 'readable_until': '2024-12-18'}
IMAGES = np.arange(96, dtype=np.uint8).reshape(2, 4, 4, 3)


def _classify(images):
    return jax.nn.softmax(images.astype(jnp.float32).mean((1, 2)) / 64)


def _export():
    """Returns what the JAX here writes of the function that the old file has."""
    (batch,) = jax.export.symbolic_shape('batch')
    images = jax.ShapeDtypeStruct((batch, 4, 4, 3), jnp.uint8)
    return bytes(jax.export.export(jax.jit(_classify))(images).serialize())


def _refused(file):
    """Returns what `run.py` says, as its own process, about a file that it cannot run."""
    np.save(file.with_name('images.npy'), IMAGES)
    code = 'import runpy, sys; sys.modules["flaxcls"] = None; del sys.argv[0]; '
    code += 'runpy.run_path(sys.argv[0], run_name="__main__")'
    arguments = [run.__file__, file.name, 'images.npy', 'probabilities.npy']
    done = subprocess.run(
        [sys.executable, '-c', code, *arguments],
        cwd=file.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert 'Traceback' not in done.stderr
    return done.stderr.splitlines()[-1]


needs_a_jax_that_refuses = pytest.mark.skipif(
    jax.__version_info__ < (0, 12), reason='this JAX still reads what 0.4.30 has written'
)


@needs_a_jax_that_refuses
@pytest.mark.parametrize(
    ('certificate', 'says'),
    [
        (
            OF_OLD,
            'JAX 0.4.30 wrote it, which releases of JAX until 2024-12-18 promise to read; '
            'pip install jax==0.4.30, or ',
        ),
        (
            {'versions_of_export': {'jax': '0.4.30'}},
            'JAX 0.4.30 wrote it; pip install jax==0.4.30, or ',
        ),
        (None, 'a JAX more than six months older or newer wrote it; '),
        ([], 'a JAX more than six months older or newer wrote it; '),
    ],
    ids=['certificate', 'older certificate', 'none', 'wrong'],
)
def test_an_old_export_is_refused_in_a_sentence(certificate, says, tmp_path):
    file = shutil.copyfile(OLD, tmp_path / 'model.stablehlo')
    if certificate is not None:
        (tmp_path / 'certificate.json').write_text(json.dumps(certificate))
    assert re.fullmatch(
        rf'error: model.stablehlo cannot be read by JAX {jax.__version__} '
        rf'\(Exported .* older than .*\); {says}export the run anew, for an archive as ONNX',
        _refused(file),
    )


def test_an_export_of_newer_operations_is_refused_in_a_sentence(tmp_path):
    content = _export()
    assert content.count(b'divide_v1') == 1
    file = tmp_path / 'model.stablehlo'
    file.write_bytes(content.replace(b'divide_v1', b'divide_v9'))
    assert 'model.stablehlo cannot be read by JAX' in _refused(file)


@pytest.mark.parametrize('length', [0, 10, 1000])
def test_a_damaged_export_is_refused_in_a_sentence(length, tmp_path):
    file = tmp_path / 'model.stablehlo'
    file.write_bytes(_export()[:length])
    with pytest.raises(SystemExit, match=r'model\.stablehlo cannot be read by JAX'):
        run.load(str(file))


@pytest.mark.parametrize('suffix', ['onnx', 'tflite', 'stablehlo'])
def test_a_file_that_is_not_the_exported_one_is_refused_whatever_it_would_compute(suffix, tmp_path):
    content = _export() if suffix == 'stablehlo' else b'a network'
    file = tmp_path / f'model.{suffix}'
    sha256 = hashlib.sha256(content).hexdigest()
    certificate = {'file': file.name, 'sha256': sha256}
    (tmp_path / 'certificate.json').write_text(json.dumps(certificate))
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(SystemExit, match=f'{file.name} is damaged: it is not the file'):
        run.load(str(file))
    file.write_bytes(content)
    if suffix == 'stablehlo':
        np.testing.assert_allclose(run.load(str(file))(IMAGES), _classify(IMAGES), rtol=1e-5)


def test_an_export_that_jax_still_reads_runs(tmp_path):
    (tmp_path / 'model.stablehlo').write_bytes(_export())
    predict = run.load(str(tmp_path / 'model.stablehlo'))
    np.testing.assert_allclose(predict(IMAGES), _classify(IMAGES), rtol=1e-5)
    with pytest.raises(ValueError, match='shape'):  # Which is no question of age.
        predict(IMAGES[:, :3])


@pytest.mark.parametrize(
    ('version', 'until'),
    [
        ('0.12.0', '2027-04-16'),
        ('0.12.0.1', '2027-04-16'),
        ('0.10.2', '2026-12-17'),
        ('0.11.1', '2027-02-17'),
        ('0.11.9', '2027-03-17'),  # Not known: as the newest before it.
        ('0.99.0.dev20300101', '2027-04-16'),
        ('0.9.0', '2026-10-16'),
    ],
)
def test_the_promise_counts_from_when_a_release_was_built(version, until):
    assert readable_until(version).isoformat() == until


def test_the_releases_that_setup_cfg_allows_are_known():
    text = pathlib.Path('setup.cfg').read_text(encoding='utf-8')
    low, high = re.search(r'jax >=0\.(\d+), <0\.(\d+)', text).groups()
    assert {minor for _, minor, _ in BUILT} == set(range(int(low), int(high)))
    assert list(BUILT.values()) == sorted(BUILT.values())
    assert readable_until(find_versions()['jaxlib']) > datetime.date(2026, 1, 1)
