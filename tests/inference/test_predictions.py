"""Predictions of a run on any layout, their calibration, their files, and the command."""

import csv
import json
import re
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from flaxcls.commands import evaluate
from flaxcls.config.workdir import load_stored_config
from flaxcls.data.datasets import Dataset, Subset
from flaxcls.errors import UserError
from flaxcls.evaluation import runs, tables
from flaxcls.inference import calibration, scores
from flaxcls.inference.calibration import CALIBRATION_FILE
from flaxcls.inference.classifier import Classifier
from flaxcls.inference.predictions import (
    PREDICTIONS_FILE,
    Predictions,
    load_predictions,
    predict_validation,
    save_predictions,
    write_csv,
)
from flaxcls.training import restore
from flaxcls.training.logging import read_metrics
from flaxcls.training.setup import build_setup
from tests.helpers.environment import with_devices


@pytest.fixture(scope='module')
def predictions(finished):
    return predict_validation(restore.load_run(finished.workdir))


def _random(count=200, classes=5, factor=1.0, seed=0):
    """Returns predictions whose probabilities are right if the factor is 1."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.standard_normal((count, classes))
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(1)
    return Predictions(
        step=7,
        labels=labels.astype(np.int32),
        logits=(logits * factor).astype(np.float32),
        names=tuple(f'{index}.png' for index in range(count)),
        class_names=tuple(f'class {index}' for index in range(classes)),
    )


def _command(*workdirs, flags=()):
    evaluate.main([*(f'--workdir={workdir}' for workdir in workdirs), *flags])


def test_they_repeat_the_last_evaluation_of_training(finished, finished_other):
    for workdir in (finished.workdir, finished_other.workdir):
        predictions = predict_validation(restore.load_run(workdir))
        labels, logits = predictions.labels, predictions.logits
        last = read_metrics(workdir)[-1]
        assert predictions.step == last['step']
        assert predictions.accuracy == last['val/accuracy']
        assert scores.top_k_accuracy(labels, logits, 5) == last['val/top5_accuracy']
        assert scores.log_loss(labels, logits) == pytest.approx(last['val/loss'], rel=1e-5)
        assert len(labels) == len(predictions.names) == last['val/count']


def test_probabilities_sum_to_one_and_predictions_stay_at_any_temperature(predictions):
    for temperature in (0.1, 1.0, 30.0):
        probabilities = predictions.probabilities(temperature)
        np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-12)
        np.testing.assert_array_equal(probabilities.argmax(1), predictions.predicted)
    assert predictions.probabilities(30.0).max() < predictions.probabilities(1.0).max()


@pytest.mark.parametrize('mode', ['jit', 'pmap'])
@pytest.mark.parametrize('devices', [1, 2])
def test_every_layout_gives_every_example_once_in_order(finished, mode, devices):
    """23 examples in batches of 8, the last of which is not full, in an order of their own."""
    config = load_stored_config(finished.workdir, {'parallel.mode': mode, 'batch_size': 8})
    digits = build_setup(config, for_training=False).dataset
    rows = np.random.default_rng(0).permutation(len(digits.val))[:23]
    dataset = Dataset(digits.train, Subset(digits.val, rows), digits.class_names)
    setup = build_setup(config, dataset=dataset, devices=jax.devices()[:devices])
    run = restore.restore_run(setup, finished.workdir)
    got = predict_validation(run)
    assert got.names == tuple(f'example {row}' for row in rows)
    np.testing.assert_array_equal(got.labels, digits.val.labels[rows])
    images = np.concatenate([batch['image'] for batch in setup.make_eval_batches()()])[:23]
    logits = jax.jit(setup.classify)(jax.device_get(run.variables), images)
    np.testing.assert_allclose(got.logits, logits, rtol=1e-4, atol=1e-5)
    assert got.accuracy == restore.make_evaluate_setup(setup)(run.variables)['val/accuracy']
    assert (got.logits.dtype, got.labels.dtype) == (np.float32, np.int32)


_OF_TWO_PROCESSES = """
import argparse
from flaxcls.system import distributed
parser = argparse.ArgumentParser()
distributed.add_flags(parser)
parser.add_argument('workdir')
flags = parser.parse_args()
distributed.start(flags)
from flaxcls.inference import predictions
from flaxcls.training import restore
found = predictions.predict_validation(restore.load_run(flags.workdir))
assert found.accuracy == restore.evaluate_workdir(flags.workdir)['val/accuracy']
distributed.on_first(lambda: predictions.save_predictions(found, flags.workdir))
"""


def test_two_processes_predict_as_one(workdir, predictions):
    with socket.socket() as free:
        free.bind(('localhost', 0))
        flags = [f'--coordinator=localhost:{free.getsockname()[1]}', '--num_processes=2']
    command = [sys.executable, '-c', _OF_TWO_PROCESSES, str(workdir), *flags, '--process_id']
    running = [
        subprocess.Popen([*command, str(index)], env=with_devices(2), stderr=subprocess.PIPE)
        for index in (0, 1)
    ]
    try:
        ends = [process.communicate(timeout=90)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], ends
    got = load_predictions(workdir)
    np.testing.assert_allclose(got.logits, predictions.logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(got.labels, predictions.labels)
    assert got.names == predictions.names


def test_the_file_gives_them_back(predictions, tmp_path):
    strange = _random()._replace(names=tuple(f'{i} é漢,"\n\udcff' for i in range(200)))
    for expected in (predictions, strange):
        assert save_predictions(expected, tmp_path) == tmp_path / PREDICTIONS_FILE
        got = load_predictions(tmp_path)
        for field, value in got._asdict().items():
            assert type(value) is type(getattr(expected, field)), field
            np.testing.assert_array_equal(value, getattr(expected, field))
        assert got.logits.dtype == np.float32
    assert [path.name for path in tmp_path.iterdir()] == [PREDICTIONS_FILE]


def test_a_file_that_is_missing_or_damaged_is_named_with_the_remedy(tmp_path):
    with pytest.raises(UserError, match=r'no predictions in .*\bevaluate --workdir='):
        load_predictions(tmp_path)
    path = save_predictions(_random(), tmp_path)
    whole = path.read_bytes()
    for damaged in (b'', whole[:100], whole[:-200], b'no archive'):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match='is damaged; run'):
            load_predictions(tmp_path)
    np.savez(path, step=1)
    with pytest.raises(UserError, match='is damaged; run'):
        load_predictions(tmp_path)


def test_the_table_for_people_has_every_example(tmp_path):
    predictions = _random()
    names = ('a,"b"\n.png', 'caf\udce9.png', *predictions.names[2:])  # The second is not UTF-8.
    predictions = predictions._replace(names=names)
    path = write_csv(predictions, tmp_path / 'out.csv', temperature=2.0)
    with path.open(encoding='utf-8', errors='surrogateescape', newline='') as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ['example', 'label', 'prediction', 'correct', 'probability']
    assert tuple(row['example'] for row in rows) == names
    classes = predictions.class_names
    assert [row['label'] for row in rows] == [classes[label] for label in predictions.labels]
    assert [row['prediction'] for row in rows] == [classes[k] for k in predictions.predicted]
    assert [row['correct'] == '1' for row in rows] == predictions.correct.tolist()
    shown = [float(row['probability']) for row in rows]
    np.testing.assert_allclose(shown, predictions.probabilities(2.0).max(1), atol=1e-6)


@pytest.mark.parametrize('factor', [0.4, 3.0])
def test_calibration_mends_what_is_too_sure_or_not_sure_enough(factor):
    predictions = _random(6000, 10, factor)
    found = calibration.calibrate(predictions)
    assert found.temperature == pytest.approx(factor, rel=0.05)
    assert found.ece_before > 0.1
    assert found.ece_after < 0.25 * found.ece_before
    assert found.loss_after < found.loss_before
    assert (found.step, found.count) == (7, 6000)
    before = scores.expected_calibration_error(predictions.labels, predictions.probabilities())
    assert found.ece_before == before
    loss = scores.log_loss(predictions.labels, predictions.logits)
    assert found.loss_before == pytest.approx(loss)


def test_calibration_judges_with_a_temperature_of_other_images():
    predictions = _random(2, 2)._replace(
        labels=np.array([0, 0], np.int32), logits=np.array([[4, 0], [0, 4]], np.float32)
    )
    found = calibration.calibrate(predictions)
    # The wrong one alone asks for the highest temperature, the right one for none.
    high = scores.TEMPERATURES[1]
    losses = np.log1p(np.exp(-4 / high)), np.log1p(np.exp(4))
    assert found.loss_after == pytest.approx(np.mean(losses), rel=1e-3)
    with pytest.raises(UserError, match='on 1 image'):
        calibration.calibrate(_random(1))


def test_calibrated_probabilities_are_what_the_classifier_gives(workdir, predictions, capsys):
    table = workdir / 'predictions.csv'
    _command(workdir, flags=['--calibrate', f'--csv={table}'])
    printed = capsys.readouterr().out
    stored = json.loads((workdir / CALIBRATION_FILE).read_text())
    assert stored == calibration.calibrate(predictions)._asdict() | {'source': 'digits'}
    assert f'temperature {stored["temperature"]:.4f}' in printed
    assert stored['temperature'] != 1
    classifier = Classifier.load(workdir)
    images = restore.load_run(workdir)[0].dataset.val.images
    expected = predictions.probabilities(stored['temperature'])
    np.testing.assert_allclose(classifier.predict(images), expected, rtol=1e-3, atol=1e-5)
    shown = np.loadtxt(table, delimiter=',', skiprows=1, usecols=4)
    np.testing.assert_allclose(shown, expected.max(1), atol=2e-6)
    _command(workdir, flags=['--config.data.eval_crops=flip', f'--csv={table}'])
    run = restore.load_run(workdir, overrides={'data.eval_crops': 'flip'})
    shown = np.loadtxt(table, delimiter=',', skiprows=1, usecols=4)
    plain = predict_validation(run).probabilities()  # It was not measured with these.
    np.testing.assert_allclose(shown, plain.max(1), atol=2e-6)


def test_the_command_prints_the_scores_and_keeps_the_logits(workdir, predictions, capsys):
    _command(workdir)
    printed = capsys.readouterr().out
    low, high = scores.accuracy_interval(predictions.correct)
    assert f'accuracy {predictions.accuracy:.2%}, 95% interval {low:.2%} to {high:.2%}' in printed
    assert f'wrote {workdir / PREDICTIONS_FILE}' in printed
    np.testing.assert_array_equal(load_predictions(workdir).logits, predictions.logits)
    assert not (workdir / CALIBRATION_FILE).exists()
    _command(workdir, flags=['--config.batch_size=32', '--config.top_k=3', '--checkpoint=best'])
    assert 'top3_accuracy' in capsys.readouterr().out


def test_predictions_of_other_images_leave_the_runs_own(workdir, write_images, capsys):
    _command(workdir)
    before = (workdir / PREDICTIONS_FILE).read_bytes()
    images = {f'{part}/{label}/a.png': (8, 8) for part in ('train', 'val') for label in range(10)}
    flag = f'--config.data.source=folder:{write_images(images)}'
    table = workdir / 'predictions.csv'
    capsys.readouterr()
    _command(workdir, flags=[flag, '--config.batch_size=2', f'--csv={table}', '--calibrate'])
    assert "is not written, since config.data.source is not the run's" in capsys.readouterr().out
    assert (workdir / PREDICTIONS_FILE).read_bytes() == before
    lines = table.read_text().splitlines()[1:]
    assert [re.search(r'val/(\d)/a\.png', line)[1] for line in lines] == list('0123456789')
    stored = json.loads((workdir / CALIBRATION_FILE).read_text())
    assert (stored['count'], stored['source']) == (10, flag.split('=')[1])


def test_several_runs_are_compared_with_the_first(workdir, finished_other, tmp_path, capsys):
    workdirs = workdir, shutil.copytree(finished_other.workdir, tmp_path / 'other')
    one, other = (predict_validation(restore.load_run(workdir)) for workdir in workdirs)
    assert one.accuracy != other.accuracy
    _command(*workdirs)
    printed = capsys.readouterr().out
    test = scores.mcnemar(one.correct, other.correct)
    assert f'on {test.only_b}, {workdirs[0]} alone on {test.only_a}: p = {test.p_value:.2g}' in (
        printed
    )
    for workdir, expected in zip(workdirs, (one, other), strict=True):
        line = re.search(rf'^{workdir} .*', printed, re.MULTILINE)[0]
        assert f'{expected.accuracy:.2%}' in line
        assert f'{scores.log_loss(expected.labels, expected.logits):.4f}' in line
        assert load_predictions(workdir).accuracy == expected.accuracy


@pytest.mark.parametrize(
    ('change', 'says'),
    [
        ({'class_names': tuple('abcde')}, 'their classes are others'),
        ({'names': ('0.png',)}, 'they are 200 and 1'),
        ({'names': ('b.png', *_random().names[1:])}, "number 0 is '0.png' of .*, and 'b.png' of"),
        ({'labels': (_random().labels + (np.arange(200) == 9)) % 5}, "number 9 is '9.png' of"),
    ],
    ids=['classes', 'count', 'names', 'labels'],
)
def test_runs_of_other_images_are_not_compared(change, says):
    one = _random()
    with pytest.raises(UserError, match=f'not the same in the same order .*{says}'):
        tables.comparison([('a', one), ('b', one), ('c', one._replace(**change))], 5)
    assert 'p = 1' in tables.comparison([('a', one), ('b', one)], 5)


@pytest.mark.parametrize(
    ('flags', 'says'),
    [
        (
            ['--calibrate', '--config.data.eval_crops=flip'],
            'data.eval_crops would change the network',
        ),
        (['--workdir=OTHER', '--csv=x.csv'], 'predictions of one run'),
        (['--workdir=DIR/.'], 'are one run; give different ones'),
        (['--csv=DIR/absent/x.csv'], "no folder '.*absent' for x.csv"),
        (['--csv=DIR'], 'is a folder'),
        (['--calibrat'], 'did you mean --calibrate'),
        (['--checkpoint=5'], '5'),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else '',
)
def test_what_does_not_fit_is_refused(workdir, flags, says):
    before = sorted(path.name for path in workdir.iterdir())
    with pytest.raises(UserError, match=says):
        places = {'DIR': str(workdir), 'OTHER': str(workdir / 'other')}
        for name, place in places.items():
            flags = [flag.replace(name, place) for flag in flags]
        _command(workdir, flags=flags)
    assert sorted(path.name for path in workdir.iterdir()) == before


def test_classes_come_worst_first_and_what_is_left_out_is_said():
    predictions = _random(3000, 300)
    table = scores.class_scores(predictions.labels, predictions.predicted, 300)
    lines = tables.class_table(predictions, most=25).splitlines()
    shown = [float(line.split()[-1].rstrip('%')) for line in lines[1:26]]
    np.testing.assert_allclose(shown, 100 * np.sort(table.f1[table.support > 0])[:25], atol=0.006)
    present = int((table.support > 0).sum())
    assert lines[26].startswith(f'The other {present - 25} classes')
    few = _random(40, 300)
    absent = 300 - len(np.unique(few.labels))
    assert tables.class_table(few).endswith(f'\n{absent} of 300 classes have no image.')
    everything = tables.class_table(_random(500, 5)).splitlines()
    assert sorted(line[:7] for line in everything[1:]) == [f'class {index}' for index in range(5)]


def test_confusions_come_most_frequent_first():
    predictions = _random(2000, 5)
    text = tables.confusions(predictions, most=7)
    rows = re.findall(r'(\d+)  class (\d) taken for class (\d) \(([\d.]+)% of its (\d+)\)', text)
    assert len(rows) == 7
    wrong = predictions.labels != predictions.predicted
    for count, label, prediction, percent, images in rows:
        assert label != prediction
        of_label = predictions.labels == int(label)
        assert int(count) == (of_label & wrong & (predictions.predicted == int(prediction))).sum()
        assert int(images) == of_label.sum()
        assert float(percent) == pytest.approx(100 * int(count) / int(images), abs=0.06)
    counts = [int(row[0]) for row in rows]
    assert counts == sorted(counts, reverse=True)
    pairs = predictions.labels[wrong] * 5 + predictions.predicted[wrong]
    assert counts[0] == np.bincount(pairs).max()
    right = predictions._replace(labels=predictions.predicted.astype(np.int32))
    assert tables.confusions(right) == 'Every prediction is right.'


def test_a_temperature_that_makes_it_worse_is_not_kept(workdir, capsys, monkeypatch):
    worse = calibration.Calibration(44, 1.5, 0.01, 0.02, 0.3, 0.4, 359)
    monkeypatch.setattr(runs, 'calibrate', lambda predictions: worse)
    _command(workdir, flags=['--calibrate'])
    assert 'It is not kept' in capsys.readouterr().out
    assert not (workdir / CALIBRATION_FILE).exists()
