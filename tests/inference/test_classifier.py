"""The classifier that a run has trained, as a notebook has it."""

import json
import re

import jax
import numpy as np
import pytest
from PIL import Image

from flaxcls.errors import RunError, UserError
from flaxcls.inference.calibration import CALIBRATION_FILE
from flaxcls.inference.classifier import Classifier
from flaxcls.training.restore import load_run


@pytest.fixture(scope='module')
def digits(finished):
    """Validation images as they come, and the run's own logits of them."""
    setup, _, variables = load_run(finished.workdir)
    batches, classify = list(setup.make_eval_batches()()), jax.jit(setup.classify)
    logits = [classify(variables, batch['image'])[batch['mask']] for batch in batches]
    return setup.dataset.val.images, np.concatenate(logits)


def test_it_predicts_as_evaluation_does(classifier, digits):
    images, logits = digits
    np.testing.assert_allclose(classifier.logits(images), logits, rtol=1e-5, atol=1e-5)
    probabilities = classifier.predict(images[:70])
    np.testing.assert_allclose(probabilities, jax.nn.softmax(logits[:70]), rtol=1e-4, atol=1e-6)
    assert classifier.class_names == tuple('0123456789')
    assert classifier.features(images[:3]).shape == (3, 16)


def test_arrays_bytes_and_paths_are_alike_whatever_comes_with_them(classifier, digits, tmp_path):
    images = digits[0][:5]
    paths = [tmp_path / f'{index}.png' for index in range(5)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image[..., 0]).save(path)
    expected = classifier.predict(images)
    mixed = [images[0], paths[1].read_bytes(), str(paths[2]), paths[3], images[4]]
    np.testing.assert_allclose(classifier.predict(mixed), expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(classifier.predict(paths[2]), expected[2:3], rtol=1e-5, atol=1e-7)


def test_few_batch_sizes_are_compiled(workdir, digits, caplog):
    classifier = Classifier.load(workdir)
    with jax.log_compiles():
        for count in range(1, 18):
            assert classifier.predict(digits[0][:count]).shape == (count, 10)
    said = [record.getMessage() for record in caplog.records]
    compiled = [text for text in said if re.match(r'Compiling \S*classify', text)]
    assert len(compiled) == 6, said  # 1, 2, 4, 8, 16 and 32.


def test_a_mirrored_crop_is_averaged_in(workdir, classifier, digits):
    images = digits[0][:9]
    both = Classifier.load(workdir, crops='flip').predict(images)
    mirrored = classifier.predict(images[:, :, ::-1])
    expected = (classifier.predict(images) + mirrored) / 2
    np.testing.assert_allclose(both, expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(UserError, match="='nine' is unknown"):
        Classifier.load(workdir, crops='nine')


def test_features_of_ten_crops_are_those_of_the_center(workdir, tmp_path, digits):
    config = json.loads((workdir / 'config.json').read_text())
    config['data'] |= {'image_size': 8, 'eval_crop_fraction': 0.8, 'eval_crops': 'ten'}
    for path in workdir.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / 'config.json').unlink()
    (tmp_path / 'config.json').write_text(json.dumps(config))
    ten, center = Classifier.load(tmp_path), Classifier.load(tmp_path, crops='center')
    assert (ten.side, center.side) == (10, 8)
    ours, theirs = (c.features(digits[0][:4]) for c in (ten, center))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_a_measured_temperature_is_that_of_its_checkpoint_alone(workdir, digits):
    images, logits = digits
    path = workdir / CALIBRATION_FILE
    for step, temperature in ((44, 2.0), (43, 1.0)):
        path.write_text(json.dumps({'step': step, 'temperature': 2.0}))
        probabilities = Classifier.load(workdir).predict(images[:5])
        expected = jax.nn.softmax(logits[:5] / temperature)
        np.testing.assert_allclose(probabilities, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    'text', ['', '{"step": 44', '[]', '{"temperature": 2.0}', '{"step": 44, "temperature": -1}']
)
def test_a_damaged_calibration_is_reported_in_a_sentence(workdir, text):
    (workdir / CALIBRATION_FILE).write_text(text)
    with pytest.raises(UserError, match=r'calibration.json. is damaged; delete it'):
        Classifier.load(workdir)


def test_the_exported_program_needs_jax_alone(classifier, digits, tmp_path):
    exported = jax.export.deserialize(classifier.export(tmp_path / 'm.stablehlo').read_bytes())
    assert set(exported.platforms) == {'cpu', 'cuda', 'tpu'}
    for count in (1, 7):
        prepared = np.stack([classifier.preprocess(image) for image in digits[0][:count]])
        expected = classifier.predict(digits[0][:count])
        np.testing.assert_allclose(exported.call(prepared), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ('images', 'says'),
    [
        (np.zeros((2, 8, 8, 3)), r'float64 \[8, 8, 3\]; give uint8'),
        (np.zeros((8, 8, 3), np.uint8), r'uint8 \[8, 3\]; give uint8'),
        ([np.zeros((8, 8, 4), np.uint8)], r'uint8 \[8, 8, 4\]; give uint8'),
        ([], 'there are no images'),
    ],
    ids=['float', 'one image', 'four channels', 'none'],
)
def test_what_is_not_an_image_is_refused(classifier, images, says):
    with pytest.raises(UserError, match=says):
        classifier.predict(images)


def test_a_file_that_cannot_be_read_is_named(classifier, tmp_path):
    (tmp_path / 'note.txt').write_text('no image')
    for name, reason in (('note.txt', 'no readable image'), ('absent.png', 'No such file')):
        with pytest.raises(RunError, match=f'{name}: {reason}'):
            classifier.predict([tmp_path / name])


@pytest.mark.parametrize('text', ['', '{}', '["a", "b"]'])
def test_damaged_class_names_are_reported_in_a_sentence(workdir, text):
    (workdir / 'class_names.json').write_text(text)
    with pytest.raises(UserError, match='is missing or damaged, and should list 10 names'):
        Classifier.load(workdir)
