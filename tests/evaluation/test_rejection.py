"""Predictions that are withheld, and decisions by what they cost."""

import csv

import numpy as np
import pytest

from flaxcls.errors import UserError
from flaxcls.evaluation.rejection import (
    Costs,
    always_decide,
    decide,
    describe_costs,
    describe_coverage,
    read_costs,
    risk_and_coverage,
)
from flaxcls.inference.predictions import Predictions

CLASSES = ('boot', 'coat', 'shirt')


@pytest.fixture(params=range(3), ids='seed {}'.format)
def rng(request):
    return np.random.default_rng(request.param)


def _predictions(rng, count=200):
    """Draws labels from the network's own probabilities, so that these are calibrated."""
    logits = 2 * rng.normal(size=(count, len(CLASSES)))
    found = Predictions(1, np.zeros(count, np.int32), logits.astype(np.float32), (), CLASSES)
    draws = rng.random((count, 1))
    return found._replace(labels=(found.probabilities().cumsum(1) < draws).sum(1).clip(max=2))


def _costs(rng, reject=0.3):
    errors = rng.uniform(0.5, 5, (3, 3)) * (1 - np.eye(3))
    return Costs(errors, np.full(3, reject))


def test_what_is_kept_is_counted_as_one_would_by_hand(rng):
    predictions = _predictions(rng)
    confidence = predictions.probabilities().max(1)
    rows = risk_and_coverage(predictions)
    assert (rows[0].coverage, rows[0].accuracy) == (1, predictions.accuracy)
    assert [row.coverage for row in rows] == sorted({row.coverage for row in rows}, reverse=True)
    for row in rows:
        kept = [i for i in range(len(confidence)) if confidence[i] >= row.min_probability]
        assert row.coverage == len(kept) / len(confidence)
        assert row.accuracy == pytest.approx(np.mean([predictions.correct[i] for i in kept]))
        assert row.interval[0] <= row.accuracy <= row.interval[1]
    assert rows[-1].accuracy > rows[0].accuracy  # Since the probabilities mean something here.


def test_what_is_printed_keeps_what_the_table_says(rng):
    """However sure the network is: 0.9999999 must not become 1."""
    predictions = _predictions(rng)
    predictions = predictions._replace(logits=8 * predictions.logits)
    rows = risk_and_coverage(predictions)
    printed = [float(line.split()[-1]) for line in describe_coverage(rows).splitlines()[1:]]
    confidence = predictions.probabilities().max(1)
    assert [np.mean(confidence >= value) for value in printed] == [row.coverage for row in rows]


def test_equally_sure_predictions_are_kept_together():
    logits = np.tile([[1.0, 0.0, 0.0]], (8, 1)).astype(np.float32)
    same = Predictions(1, np.arange(8, dtype=np.int32) % 3, logits, ('',) * 8, CLASSES)
    assert [row.coverage for row in risk_and_coverage(same)] == [1]


def test_no_other_decision_expects_a_lower_cost(rng):
    predictions, costs = _predictions(rng), _costs(rng)
    shares = predictions.probabilities()
    found = decide(shares, predictions.labels, costs)
    for row, chosen in zip(shares, found.chosen, strict=True):
        expected = [sum(row[i] * costs.errors[i, j] for i in range(3)) for j in range(3)]
        expected.append(sum(row * costs.reject))
        assert expected[chosen] == pytest.approx(min(expected))


def test_where_all_errors_cost_one_it_is_chows_rule(rng):
    predictions = _predictions(rng)
    found = decide(
        predictions.probabilities(), predictions.labels, Costs(1 - np.eye(3), np.full(3, 0.2))
    )
    withheld = predictions.probabilities().max(1) < 1 - 0.2
    np.testing.assert_array_equal(found.chosen == 3, withheld)
    np.testing.assert_array_equal(found.chosen[~withheld], predictions.predicted[~withheld])
    assert found.cost == pytest.approx(0.2 * found.rejected + found.errors)


def test_on_calibrated_predictions_costs_fall_with_each_freedom(rng):
    predictions, costs = _predictions(rng, 500_000), _costs(rng)
    shares, labels = predictions.probabilities(), predictions.labels
    never = decide(shares, labels, Costs(costs.errors, np.full(3, np.inf)))
    assert never.rejected == 0
    always = always_decide(predictions.predicted, labels, costs)
    assert decide(shares, labels, costs).cost < never.cost < always.cost


def _write(path, rows):
    with path.open('w', newline='') as file:
        csv.writer(file).writerows(rows)
    return path


def test_costs_are_read_by_name_in_any_order(rng, tmp_path):
    costs = _costs(rng)
    order = rng.permutation(3)
    rows = [['class', 'reject', *(CLASSES[j] for j in order)]]
    rows += [[CLASSES[i], costs.reject[i], *costs.errors[i, order]] for i in rng.permutation(3)]
    found = read_costs(_write(tmp_path / 'costs.csv', rows), CLASSES)
    np.testing.assert_array_equal(found.errors, costs.errors)
    np.testing.assert_array_equal(found.reject, costs.reject)
    rows = [row[:1] + row[2:] for row in rows]
    found = read_costs(_write(tmp_path / 'costs.csv', rows), CLASSES)
    np.testing.assert_array_equal(found.errors, costs.errors)
    assert 'withheld' not in describe_costs(_predictions(rng), found).splitlines()[-1]


RIGHT = [['class', *CLASSES], *([name, 0, 1, 2] for name in CLASSES)]


@pytest.mark.parametrize(
    ('place', 'cell', 'says'),
    [
        ((0, 0), 'label', 'must begin with a line class,boot,coat,shirt,reject'),
        ((0, 2), 'cot', "a column 'cot', which is no class .did you mean coat"),
        ((0, 2), 'boot', "the column 'boot' more than once"),
        ((3, 0), 'coat', "the row 'coat' more than once"),
        ((1, 0), 'reject', "a row 'reject', which is no class"),
        *(((2, 1), cell, "for 'boot' where it is 'coat'") for cell in ('', 'x', -1, 'nan', 'inf')),
    ],
)
def test_mistakes_in_the_costs_are_a_sentence(place, cell, says, tmp_path):
    rows = [list(row) for row in RIGHT]
    rows[place[0]][place[1]] = cell
    with pytest.raises(UserError, match=says) as caught:
        read_costs(_write(tmp_path / 'costs.csv', rows), CLASSES)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('data', [None, b'', b'class,\xff\n', b'class,boot,coat,shirt\n'])
def test_files_that_are_no_costs_are_a_sentence(data, tmp_path):
    if data is not None:
        (tmp_path / 'costs.csv').write_bytes(data)
    with pytest.raises(UserError, match='--costs='):
        read_costs(tmp_path / 'costs.csv', CLASSES)
