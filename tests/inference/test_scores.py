"""Scores: as scikit-learn has them, or as their definitions say, on random predictions."""

import numpy as np
import pytest
import sklearn.calibration
import sklearn.metrics
from scipy.special import softmax
from scipy.stats import binomtest

from flaxcls.evaluation.mcnemar import mcnemar
from flaxcls.inference import scores

# Examples, classes, noise: few and many, two classes, classes without examples, all right.
SIZES = [(1, 2, 1.0), (7, 2, 1.0), (40, 10, 0.5), (500, 3, 1.0), (3000, 100, 1.0), (60, 5, 0.0)]


@pytest.fixture(params=SIZES, ids=str)
def example(request):
    """Labels, and logits that are right the more often, the less noise there is."""
    count, classes, noise = request.param
    rng = np.random.default_rng(count)
    labels = rng.integers(0, max(classes - 1, 1), count)  # The last class has no examples.
    logits = 3 * np.eye(classes)[labels] + 2 * noise * rng.standard_normal((count, classes))
    return labels.astype(np.int32), logits.astype(np.float32)


def _calibrated(count, classes, seed=0):
    """Returns labels that are drawn from the softmax of the logits, and these."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.standard_normal((count, classes))
    # The largest of logits + Gumbel noise is distributed as the softmax.
    return (logits + rng.gumbel(size=logits.shape)).argmax(1), logits


def test_scores_of_classes_are_shares_of_the_confusion_matrix(example):
    labels, logits = example
    classes = logits.shape[1]
    table = scores.class_scores(labels, logits.argmax(1), classes)
    matrix = scores.confusion_matrix(labels, logits.argmax(1), classes)
    expected = sklearn.metrics.confusion_matrix(labels, logits.argmax(1), labels=range(classes))
    np.testing.assert_array_equal(matrix, expected)
    for name in table._fields:
        assert getattr(table, name).shape == (classes,), name
    right, named, there = matrix.diagonal(), matrix.sum(0), matrix.sum(1)
    np.testing.assert_array_equal(table.support, there)
    np.testing.assert_allclose(table.precision, right / np.maximum(named, 1))
    np.testing.assert_allclose(table.recall, right / np.maximum(there, 1))
    np.testing.assert_allclose(table.f1, 2 * right / np.maximum(named + there, 1))


def test_what_is_not_a_class_is_refused():
    for labels, predicted in (([0, 3], [0, 1]), ([0, 1], [-1, 0])):
        with pytest.raises(ValueError, match='classes are 0 to 2'):
            scores.confusion_matrix(np.array(labels), np.array(predicted), 3)


def test_loss_and_top_k_are_scikit_learns(example):
    labels, logits = example
    classes = np.arange(logits.shape[1])
    for temperature in (0.5, 1.0, 4.0):
        loss = scores.log_loss(labels, logits, temperature)
        probabilities = softmax(logits.astype(np.float64) / temperature, axis=1)
        expected = sklearn.metrics.log_loss(labels, probabilities, labels=classes)
        assert loss == pytest.approx(expected, rel=1e-6)
    for k in classes + 1:
        got = scores.top_k_accuracy(labels, logits, k)
        best = np.argsort(-logits, axis=1)[:, :k]
        assert got == np.mean([label in row for label, row in zip(labels, best, strict=True)])
    assert scores.top_k_accuracy(labels, logits, len(classes)) == 1
    assert scores.top_k_accuracy(labels, logits, 1) == np.mean(logits.argmax(1) == labels)


def test_of_equal_logits_the_first_is_better():
    logits = np.array([[1.0, 1.0, 0.0, 1.0]] * 4)
    for k, expected in ((1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0)):
        assert scores.top_k_accuracy(np.arange(4), logits, k) == expected


@pytest.mark.parametrize('bins', [1, 4, 15])
def test_reliability_is_a_mean_over_each_bin(example, bins):
    labels, logits = example
    probabilities = softmax(logits.astype(np.float64), axis=1)
    diagram = scores.reliability(labels, probabilities, bins)
    sure, right = probabilities.max(1), probabilities.argmax(1) == labels
    error = 0
    for place in range(bins):
        low, high = diagram.edges[place : place + 2]
        inside = (low < sure) & (sure <= high) if place else sure <= high
        assert diagram.count[place] == inside.sum()
        if not inside.any():
            assert np.isnan([diagram.accuracy[place], diagram.confidence[place]]).all()
            continue
        assert diagram.accuracy[place] == pytest.approx(right[inside].mean())
        assert diagram.confidence[place] == pytest.approx(sure[inside].mean())
        error += inside.mean() * abs(right[inside].mean() - sure[inside].mean())
    assert diagram.count.sum() == len(labels)
    got = scores.expected_calibration_error(labels, probabilities, bins)
    assert got == pytest.approx(error)
    shares, means = sklearn.calibration.calibration_curve(right, sure, n_bins=bins)
    filled = diagram.count > 0
    np.testing.assert_allclose(diagram.accuracy[filled], shares)
    np.testing.assert_allclose(diagram.confidence[filled], means)


def test_an_edge_belongs_to_the_bin_below():
    probabilities = np.array([[0.5, 0.5], [0.75, 0.25], [1.0, 0.0]])
    counts = scores.reliability(np.zeros(3, int), probabilities, bins=4).count
    assert counts.tolist() == [0, 1, 1, 1]


def test_what_is_as_right_as_it_is_sure_has_no_error():
    labels, logits = _calibrated(40_000, 10)
    assert scores.expected_calibration_error(labels, softmax(logits, axis=1)) < 0.01
    assert scores.expected_calibration_error(labels, softmax(3 * logits, axis=1)) > 0.1
    always = np.eye(2)[np.zeros(8, int)]  # Quite sure, and right on half of them.
    assert scores.expected_calibration_error(np.arange(8) % 2, always) == 0.5


@pytest.mark.parametrize('factor', [0.3, 1.0, 3.0])
def test_temperature_recovers_a_known_one(factor):
    labels, logits = _calibrated(20_000, 10)
    one = scores.fit_temperature(labels, logits)
    assert one == pytest.approx(1, abs=0.05)
    found = scores.fit_temperature(labels, logits * factor)
    assert found == pytest.approx(one * factor, rel=1e-4)
    losses = [scores.log_loss(labels, logits * factor, found * t) for t in (0.98, 1.0, 1.02)]
    assert min(losses) == losses[1]


def test_temperature_is_finite_whatever_the_predictions_are(example):
    labels, logits = example
    low, high = scores.TEMPERATURES
    for shown in (logits, -logits, logits * 0, np.eye(logits.shape[1])[labels]):
        temperature = scores.fit_temperature(labels, shown)
        assert low <= temperature <= high
        before, after = (scores.log_loss(labels, shown, t) for t in (1.0, temperature))
        assert after <= before + 1e-6
        np.testing.assert_array_equal((shown / temperature).argmax(1), shown.argmax(1))
    assert temperature == 1  # Of predictions that are all right.


@pytest.mark.parametrize(('count', 'share'), [(30, 0.5), (100, 0.9), (360, 0.98), (50, 0.999)])
def test_the_interval_holds_the_truth_as_often_as_it_says(count, share):
    rng = np.random.default_rng(1)
    held = {0.95: 0, 0.8: 0}
    draws = 300
    for _ in range(draws):
        correct = rng.random(count) < share
        for confidence in held:
            low, high = scores.accuracy_interval(correct, confidence)
            assert 0 <= low <= correct.mean() <= high <= 1
            held[confidence] += low <= share <= high
    # Of few examples, whose accuracy moves in steps, an interval holds it more often.
    assert held[0.95] / draws >= 0.92
    assert held[0.8] / draws >= 0.75
    if share == 0.5:
        assert held[0.95] / draws <= 0.98
        assert held[0.8] / draws <= 0.9


@pytest.mark.parametrize('count', [1, 10, 359])
def test_the_interval_is_not_a_point_where_all_are_right_or_none(count):
    all_right = scores.accuracy_interval(np.ones(count, bool))
    none_right = scores.accuracy_interval(np.zeros(count, bool))
    # Of an accuracy at the bound, all right has the probability that is left out on that side.
    assert all_right == (pytest.approx(0.025 ** (1 / count)), 1)
    assert none_right == (0, pytest.approx(1 - 0.025 ** (1 / count)))


def test_the_interval_is_that_of_whole_resamples():
    correct = np.random.default_rng(0).random(80) < 0.7
    rows = np.random.default_rng(1).integers(0, 80, (20_000, 80))
    expected = np.quantile(correct[rows].mean(1), [0.025, 0.975])
    np.testing.assert_allclose(scores.accuracy_interval(correct), expected, atol=1 / 80)
    assert scores.accuracy_interval(correct) == scores.accuracy_interval(correct[::-1])
    wide, narrow = (np.diff(scores.accuracy_interval(correct, c))[0] for c in (0.99, 0.5))
    assert wide > 2 * narrow > 0


def test_mcnemar_asks_who_is_right_alone():
    rng = np.random.default_rng(0)
    for count, share in ((1, 0.5), (20, 0.3), (2000, 0.9)):
        one, other = rng.random((2, count)) < share
        test, mirrored = mcnemar(one, other), mcnemar(other, one)
        assert (test.only_a, test.only_b) == (mirrored.only_b, mirrored.only_a)
        assert test.p_value == mirrored.p_value
        assert test.only_a - test.only_b == one.sum() - other.sum()
        different = int((one != other).sum())
        if different:
            assert test.p_value == binomtest(test.only_b, different).pvalue
        both = np.concatenate([np.ones(50, bool), one]), np.concatenate([np.ones(50, bool), other])
        assert mcnemar(*both) == test  # What both have right says nothing.
        assert mcnemar(one, one) == (0, 0, 1.0)
    better = mcnemar(np.ones(10, bool), np.zeros(10, bool))
    assert better == (10, 0, pytest.approx(2 / 2**10))
