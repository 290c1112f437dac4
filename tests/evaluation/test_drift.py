"""Drift is found where images have changed, and where they have not, as rarely as is stated."""

import json

import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy import stats

from flaxcls.commands import evaluate
from flaxcls.data.sources import open_dataset
from flaxcls.errors import RunError, UserError
from flaxcls.evaluation.drift import (
    ALARM_RATE,
    CLASSES,
    CONFIDENCE,
    Sample,
    compare,
    describe_drift,
    holm,
    pixel_statistics,
    population_stability_index,
)
from flaxcls.evaluation.new_images import find_drift
from flaxcls.evaluation.runs import evaluate_runs

NAMES = ('boot', 'coat', 'shirt', 'bag')


def _most(rate, draws):
    """Returns how many of the draws come about once in 1,000 times at a rate, and no more."""
    return stats.binom.isf(1e-3, draws, rate)


@pytest.fixture(scope='module')
def digits():
    """All 1,797 digits in the three channels that a network is given, uint8 [N, 8, 8, 3]."""
    dataset = open_dataset('digits')
    grey = np.concatenate([dataset.train.images, dataset.val.images])
    return np.repeat(grey, 3, axis=-1)


def _sample(rng, images, shift=0.0):
    """Draws probabilities beside images; a shift makes the first class likelier."""
    logits = 3 * rng.standard_normal((len(images), len(NAMES)))
    logits[:, 0] += shift
    shares = np.exp(logits)
    return Sample(pixel_statistics(images), shares / shares.sum(1, keepdims=True))


def _found(before, now):
    return {change.name for change in compare(before, now, NAMES).found}


# Without Holm's correction about 30 of the 800 raise an alarm, where 18 may.
@pytest.mark.parametrize(('new', 'draws'), [(1, 100), (5, 200), (40, 300), (300, 800)])
def test_samples_of_one_source_raise_no_more_alarms_than_stated(new, draws, digits):
    rng = np.random.default_rng(new)
    everything = _sample(rng, digits)
    alarms = 0
    for _ in range(draws):
        order = rng.permutation(len(digits))[: 359 + new]
        parts = [
            Sample(
                {name: values[rows] for name, values in everything.pixels.items()},
                everything.probabilities[rows],
            )
            for rows in (order[:359], order[359:])
        ]
        alarms += bool(_found(*parts))
    assert alarms <= _most(ALARM_RATE, draws)


def test_each_test_alone_keeps_its_level_whatever_is_tied():
    """So that the rate above is not kept by one test for another that breaks it."""
    rng = np.random.default_rng(0)
    draws, rejected = 300, dict.fromkeys((CONFIDENCE, CLASSES), 0)
    for _ in range(draws):
        shares = rng.dirichlet([0.05] * 4, 200).round(2)  # Many are 1, and equal.
        pixels = pixel_statistics(np.zeros((200, 8, 8, 3), np.uint8))
        halves = [Sample({k: v[:100] for k, v in pixels.items()}, part) for part in
                  (shares[:100], shares[100:])]  # fmt: skip
        changes = compare(*halves, NAMES).changes
        for change in changes:
            if change.name in rejected:
                rejected[change.name] += change.p_value < 0.05
            else:
                assert change.p_value == 1
    # Five tests, of which three have a p-value of 1: Holm multiplies by 5 or 4.
    assert max(rejected.values()) <= _most(0.05, draws)


def _darker(images):
    return (0.7 * images).astype(np.uint8)


def _less_contrast(images):
    return (64 + images / 2).astype(np.uint8)


def _blurred(images):
    blur = ImageFilter.GaussianBlur(0.7)
    return np.stack([np.asarray(Image.fromarray(image).filter(blur)) for image in images])


def _tinted(images):
    return (images * [1, 1, 0.8]).astype(np.uint8)


def _turned(images):
    return np.rot90(images, axes=(1, 2))


@pytest.mark.parametrize(
    ('change', 'name'),
    [
        (_darker, 'brightness'),
        (_less_contrast, 'contrast'),
        (_blurred, 'sharpness'),
        (_tinted, 'mean of blue'),
        (_turned, None),  # No number of a pixel says where it is.
    ],
)
def test_changed_images_are_found_by_what_has_changed(change, name, digits):
    rng = np.random.default_rng(0)
    order = rng.permutation(len(digits))
    before = _sample(rng, digits[order[:900]])
    now = digits[order[900:1200]]
    found = _found(before, _sample(rng, change(now)))
    assert found == set() if name is None else name in found
    if change is _darker:  # Neither the edges nor the colours are others than the light.
        assert 'sharpness' not in found


def test_a_class_that_stays_away_and_another_confidence_are_found(digits):
    rng = np.random.default_rng(0)
    before, now = (_sample(rng, part) for part in (digits[:900], digits[900:]))
    kept = now.probabilities.argmax(1) != 3
    missing = Sample({k: v[kept] for k, v in now.pixels.items()}, now.probabilities[kept])
    assert CLASSES in _found(before, missing)
    assert CONFIDENCE not in _found(before, missing)
    unsure = now.probabilities**0.5
    unsure = now._replace(probabilities=unsure / unsure.sum(1, keepdims=True))
    assert _found(before, unsure) == {CONFIDENCE}
    drift = compare(before, missing, NAMES)
    assert 'most changed: bag' in describe_drift(drift)
    np.testing.assert_allclose(drift.shares.sum(1), 1)


def test_noise_is_another_data_set(digits):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (60, 8, 8, 3), np.uint8)
    assert {'brightness', 'sharpness'} <= _found(_sample(rng, digits), _sample(rng, noise))


def test_what_raises_an_alarm_for_certain_is_stated(digits):
    """The distance that is printed is the boundary between an alarm and none."""
    rng = np.random.default_rng(0)
    before, now = (_sample(rng, part) for part in (digits[:400], digits[:400]))
    now = now._replace(probabilities=before.probabilities)
    least = compare(before, now, NAMES).least_distance
    for factor, expected in ((1.02, True), (0.95, False)):
        moved = np.sort(before.pixels['brightness'])
        moved[: round(factor * least * 400)] = 300  # Brighter than any image.
        pixels = before.pixels | {'brightness': np.sort(before.pixels['brightness'])}
        drift = compare(
            before._replace(pixels=pixels), now._replace(pixels=pixels | {'brightness': moved}),
            NAMES,
        )  # fmt: skip
        assert bool(drift.found) == expected


def test_a_single_image_is_no_drift_however_strange_it_is(digits):
    rng = np.random.default_rng(0)
    before, now = _sample(rng, digits), _sample(rng, np.full((1, 8, 8, 3), 255, np.uint8))
    drift = compare(before, now, NAMES)
    assert not drift.found
    assert 'too few' in describe_drift(drift)


def test_statistics_are_those_that_one_would_compute_by_hand(digits):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 5, 6, 3), np.uint8)
    found = pixel_statistics(images)
    for index, image in enumerate(images.astype(float)):
        luma = image @ [0.299, 0.587, 0.114]
        assert found['brightness'][index] == pytest.approx(luma.mean(), abs=1e-3)
        assert found['contrast'][index] == pytest.approx(luma.std(), abs=1e-3)
        assert found['mean of green'][index] == pytest.approx(image[..., 1].mean(), abs=1e-3)
        laplacian = [
            luma[r - 1, c] + luma[r + 1, c] + luma[r, c - 1] + luma[r, c + 1] - 4 * luma[r, c]
            for r in range(1, 4)
            for c in range(1, 5)
        ]
        assert found['sharpness'][index] == pytest.approx(np.std(laplacian) / luma.std(), abs=1e-3)
    assert pixel_statistics(np.full((1, 4, 4, 3), 200, np.uint8))['sharpness'] == [0]
    whole = pixel_statistics(digits)['sharpness']
    half = pixel_statistics((digits // 2).astype(np.uint8))['sharpness']
    np.testing.assert_allclose(half, whole, rtol=0.1)


def test_holm_is_between_no_correction_and_bonferroni():
    values = [0.03, 0.001, 0.2, 0.01]
    assert holm(values) == pytest.approx([0.06, 0.004, 0.2, 0.03])
    rng = np.random.default_rng(0)
    for _ in range(20):
        values = rng.random(6) ** 3
        corrected = np.array(holm(values))
        assert np.all((corrected >= values) & (corrected <= np.minimum(6 * values, 1)))
        assert np.all(np.diff(corrected[np.argsort(values)]) >= 0)


def test_the_stability_index_is_symmetric_and_zero_only_without_change():
    assert population_stability_index(np.array([5, 0, 9]), np.array([5, 0, 9])) == 0
    one, other = np.array([500, 300, 200]), np.array([200, 300, 500])
    index = population_stability_index(one, other)
    assert index == population_stability_index(other, one)
    assert index == pytest.approx(2 * 0.3 * np.log(2.5), rel=0.01)
    assert np.isfinite(population_stability_index(np.array([9, 0]), np.array([0, 9])))


def _write(folder, images):
    folder.mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f'{index}.png')
    return folder


@pytest.mark.parametrize('form', ['{}', 'folder:{}', '{}/*.png'])
def test_the_command_compares_files_with_the_runs_own_images(form, workdir, tmp_path, capsys):
    val = open_dataset('digits').val.images[..., 0]
    _write(tmp_path / 'new', val[::2] // 2)
    file, source = tmp_path / 'drift.json', form.format(tmp_path / 'new')
    evaluate.main([f'--workdir={workdir}', f'--drift={source}', f'--json={file}'])
    out = capsys.readouterr().out
    assert f'{len(val)} validation images, {len(val[::2])} new' in out
    found = json.loads(file.read_text())
    assert found['drifted']
    changes = {change['name']: change for change in found['changes']}
    assert changes['brightness']['drifted']
    assert changes['brightness']['now'] == pytest.approx(changes['brightness']['before'] / 2, 0.1)
    assert 'sharpness' in changes
    assert 'mean of red' not in changes  # Since all are grey.
    for shares in zip(*(of.values() for of in found['predicted_classes'].values()), strict=True):
        assert sum(shares) == pytest.approx(1)


def test_the_runs_own_images_have_not_drifted(workdir, capsys):
    evaluate.main([f'--workdir={workdir}', '--drift=digits'])
    out = capsys.readouterr().out
    assert 'No drift was found.' in out
    assert '0.000' in out


def test_another_source_is_taken_without_its_labels(workdir, capsys):
    """Noise with a thousand classes, for a network that knows ten."""
    evaluate.main([f'--workdir={workdir}', '--drift=synthetic:1000'])
    assert 'Drift in the images, and in the predictions: ' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('flags', 'error', 'says'),
    [
        (['--drift=no/such'], UserError, 'nothing to read'),
        (['--drift=folder:no/such'], UserError, 'nothing to read'),
        (['--drift=tfds:no_such_set'], UserError, 'no_such_set'),
        (['--drift=*.none'], UserError, 'nothing matches'),
        (['--json=drift.json'], UserError, 'give --drift=IMAGES too'),
        (['--drift=digits', '--json=no/such/file'], UserError, 'there is no folder'),
        (['--drift=bad'], RunError, r'1 of 2 new images cannot be read .*on_error=skip'),
    ],
    ids=str,
)
def test_mistakes_are_a_sentence_before_anything_is_computed(
    flags, error, says, workdir, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    _write(tmp_path / 'bad', [np.zeros((8, 8), np.uint8)])
    (tmp_path / 'bad/note.txt').write_text('no image')
    monkeypatch.setattr('flaxcls.evaluation.runs.evaluate_runs', lambda *_, **__: pytest.fail())
    with pytest.raises(error, match=says) as caught:
        evaluate.main([f'--workdir={workdir}', *flags])
    assert '\n' not in str(caught.value)


def test_several_runs_are_compared_each_but_written_of_one(workdir, finished_other, capsys):
    runs = [f'--workdir={workdir}', f'--workdir={finished_other.workdir}']
    with pytest.raises(UserError, match='--json=x takes the drift of one run'):
        evaluate.main([*runs, '--drift=digits', '--json=x'])
    capsys.readouterr()


def test_unreadable_files_are_left_out_if_that_is_asked_for(workdir, tmp_path, capsys):
    folder = _write(tmp_path / 'new', open_dataset('digits').val.images[:, :, :, 0])
    (folder / 'note.txt').write_text('no image')
    evaluate.main([f'--workdir={workdir}', f'--drift={folder}', '--config.data.on_error=skip'])
    out = capsys.readouterr().out
    assert '1 of 360 new images cannot be read and are left out' in out
    assert '359 validation images, 359 new' in out


def test_predictions_that_are_not_finite_are_no_absence_of_drift(finished):
    (run,) = evaluate_runs([finished.workdir])
    logits = run.predictions.logits.copy()
    logits[3, 1] = np.nan
    broken = run._replace(predictions=run.predictions._replace(logits=logits))
    val = open_dataset('digits').val
    assert not find_drift(run, val).found
    with pytest.raises(RunError, match=r'not finite.*another --checkpoint'):
        find_drift(broken, val)
