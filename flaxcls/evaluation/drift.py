"""Whether new images are still like those that a network was validated on, without their labels.

Each image has a few numbers: of its pixels, and of the prediction. The two-sample test of
Kolmogorov and Smirnov compares how each is distributed, Pearson's chi-square test how often each
class is predicted. Holm's method corrects for the number of tests, so that a sample of the same
source raises an alarm with a probability of at most ALARM_RATE, whichever numbers there are.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from flaxcls.system.text import table

ALARM_RATE = 0.01
CONFIDENCE, CLASSES = 'confidence', 'predicted classes'
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow's mode L.
_LEAST_EXPECTED = 5  # Images of a class, below which its chi-square is none (Cochran, 1954).
_MOST_CLASSES = 3
_LEAST_SHOWN = 1e-16  # Of p-values.


class Sample(NamedTuple):
    """What is compared of N images.

    Attributes:
      pixels: {name: float [N]}, see `pixel_statistics`.
      probabilities: float64 [N, C], calibrated if the network is.
    """

    pixels: dict[str, np.ndarray]
    probabilities: np.ndarray


class Change(NamedTuple):
    """How one number differs between validation images and new ones.

    Attributes:
      name: of the number.
      before, now: its means; of the predicted classes, None.
      measure: KS, the largest distance between the two distribution functions, in 0..1; or PSI, the
        population stability index.
      value: of the measure.
      p_value: after Holm's correction.
    """

    name: str
    before: float | None
    now: float | None
    measure: str
    value: float
    p_value: float

    @property
    def is_drift(self) -> bool:
        return self.p_value < ALARM_RATE


class Drift(NamedTuple):
    """What has changed from N validation images to M new ones.

    Attributes:
      counts: N and M.
      changes: one for each number, in a fixed order.
      shares: float64 [2, C], of the images that are predicted to be of each class.
      class_names: of these.
    """

    counts: tuple[int, int]
    changes: tuple[Change, ...]
    shares: np.ndarray
    class_names: tuple[str, ...]

    @property
    def found(self) -> tuple[Change, ...]:
        return tuple(change for change in self.changes if change.is_drift)

    @property
    def least_distance(self) -> float:
        """The KS that raises an alarm whatever else there is; above 1, none does."""
        n, m = self.counts
        return float(np.sqrt(np.log(2 * len(self.changes) / ALARM_RATE) * (n + m) / (2 * n * m)))

    def to_json(self) -> dict[str, Any]:
        """Returns all of it as JSON has it."""
        names = ('validation', 'new')
        return {
            'images': dict(zip(names, self.counts, strict=True)),
            'drifted': bool(self.found),
            'alarm_rate': ALARM_RATE,
            'changes': [change._asdict() | {'drifted': change.is_drift} for change in self.changes],
            'predicted_classes': {
                label: dict(zip(names, shares.tolist(), strict=True))
                for label, shares in zip(self.class_names, self.shares.T, strict=True)
            },
        }


def pixel_statistics(images: np.ndarray) -> dict[str, np.ndarray]:
    """Returns statistics of the pixels of each image, float64 [N].

    Sharpness is the deviation of the discrete Laplacian over that of the image, so that it does not
    depend on light and contrast; of an image of one colour it is 0.

    Args:
      images: uint8 [N, S, S, 3], S at least 3.
    """
    pixels = images.astype(np.float32)
    luma = pixels @ _LUMA
    inside = luma[:, 1:-1, 1:-1]
    neighbours = luma[:, :-2, 1:-1] + luma[:, 2:, 1:-1] + luma[:, 1:-1, :-2] + luma[:, 1:-1, 2:]
    edges, contrast = (neighbours - 4 * inside).std((1, 2)), luma.std((1, 2))
    flat = contrast < 0.5  # Of 255 grey levels: rounding alone.
    found = {
        'brightness': luma.mean((1, 2)),
        'contrast': contrast,
        'sharpness': np.where(flat, 0, edges / np.where(flat, 1, contrast)),
    }
    for channel, color in enumerate(('red', 'green', 'blue')):
        found[f'mean of {color}'] = pixels[..., channel].mean((1, 2))
        found[f'deviation of {color}'] = pixels[..., channel].std((1, 2))
    # Rounded, since equal images in other batches differ in the last bits, which are no ties then.
    return {name: values.astype(np.float64).round(3) for name, values in found.items()}


def join_statistics(parts: Iterable[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Returns the statistics of all batches as those of one."""
    parts = list(parts)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def compare(before: Sample, now: Sample, class_names: Sequence[str]) -> Drift:
    """Returns what has changed from validation images to new ones, of C classes each."""
    numbers = {
        name: (before.pixels[name], now.pixels[name]) for name in _worth_comparing(before, now)
    }
    # Rounded as the statistics are: a probability of 1 is often one less than a millionth.
    confidences = [sample.probabilities.max(1).round(6) for sample in (before, now)]
    numbers[CONFIDENCE] = (confidences[0], confidences[1])
    rows = [_kolmogorov_smirnov(name, *pair) for name, pair in numbers.items()]
    classes = before.probabilities.shape[1]
    counts = np.stack(
        [np.bincount(sample.probabilities.argmax(1), minlength=classes) for sample in (before, now)]
    )
    index = population_stability_index(*counts)
    rows.append(Change(CLASSES, None, None, 'PSI', index, _chi_square(counts)))
    corrected = holm([row.p_value for row in rows])
    return Drift(
        counts=(len(before.probabilities), len(now.probabilities)),
        changes=tuple(row._replace(p_value=p) for row, p in zip(rows, corrected, strict=True)),
        shares=counts / counts.sum(1, keepdims=True),
        class_names=tuple(class_names),
    )


def _worth_comparing(before: Sample, now: Sample) -> list[str]:
    """Returns the names of the statistics, without those of channels if all images are grey."""
    first, *others = ('red', 'green', 'blue')
    is_grey = all(
        np.array_equal(sample.pixels[f'{what} of {first}'], sample.pixels[f'{what} of {other}'])
        for sample in (before, now)
        for what in ('mean', 'deviation')
        for other in others
    )
    return [name for name in before.pixels if not is_grey or ' of ' not in name]


def _kolmogorov_smirnov(name: str, before: np.ndarray, now: np.ndarray) -> Change:
    from scipy.special import kolmogorov  # noqa: PLC0415 - slow to import

    places, n, m = np.concatenate([before, now]), len(before), len(now)
    first, second = (np.sort(values).searchsorted(places, 'right') for values in (before, now))
    distance = float(abs(first / n - second / m).max())
    # The limit distribution, which rejects too seldom where images are few or values tied.
    # scipy.stats.ks_2samp rejects for a single image, unless it is exact, which takes too long.
    p_value = float(kolmogorov(distance * np.sqrt(n * m / (n + m))))
    return Change(name, float(before.mean()), float(now.mean()), 'KS', distance, p_value)


def population_stability_index(before: np.ndarray, now: np.ndarray) -> float:
    """Returns the sum of (p - q) ln(p / q) over the shares p and q of each class.

    Above 0.25 a distribution is usually called another, below 0.1 the same; of N and M images from
    one source about (C - 1) (1 / N + 1 / M) is expected.

    Args:
      before, now: int [C], how many images there are of each class. Half of one is added to each,
        so that a class without any has a logarithm.
    """
    p, q = ((counts + 0.5) / (counts + 0.5).sum() for counts in (before, now))
    return float(((p - q) * np.log(p / q)).sum())


def _chi_square(counts: np.ndarray) -> float:
    """Returns the p-value of counts [2, C] being of one distribution, rare classes as one."""
    from scipy.stats import chi2_contingency  # noqa: PLC0415

    expected = counts.sum(0) * counts.sum(1, keepdims=True) / counts.sum()
    rare = expected.min(0) < _LEAST_EXPECTED
    cells = np.column_stack([counts[:, ~rare], counts[:, rare].sum(1)])
    cells = cells[:, cells.sum(0) > 0]
    if cells.shape[1] < 2:
        return 1.0
    return float(chi2_contingency(cells, correction=False).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns the p-values after Holm's correction (Scand. J. Statist. 6, 1979), in their order.

    Of true hypotheses any is rejected at a level with at most that probability, however the tests
    depend on one another.
    """
    values = np.asarray(p_values, np.float64)
    order = np.argsort(values, kind='stable')
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(stepped, 1)
    return corrected.tolist()


def describe_drift(drift: Drift) -> str:
    """Returns what has changed, by how much and what to do about it, for a terminal."""
    rows = [('', 'validation', 'new', '', '', 'p', '')]
    for change in drift.changes:
        form = '{:.1%}' if change.name == CONFIDENCE else '{:.4g}'
        means = [form.format(x) if x is not None else '' for x in (change.before, change.now)]
        p_value = f'{change.p_value:.2g}' if change.p_value >= _LEAST_SHOWN else f'<{_LEAST_SHOWN}'
        verdict = 'drift' if change.is_drift else ''
        rows.append((change.name, *means, change.measure, f'{change.value:.3f}', p_value, verdict))
    n, m = drift.counts
    lines = [f'{n:,} validation images, {m:,} new', *table(rows, '<>>><><')]
    if any(change.name == CLASSES for change in drift.found):
        lines.append(_describe_classes(drift))
    return '\n'.join([*lines, _describe_alarms(drift), _advise(drift)])


def _describe_alarms(drift: Drift) -> str:
    limit = f'Samples of the same source raise an alarm in at most {ALARM_RATE:.0%} of cases'
    if drift.least_distance > 1:
        return f'{limit}; these are too few to raise one by their pixels or confidence.'
    return f'{limit}; with so many images, a KS of {drift.least_distance:.2f} raises one.'


def _describe_classes(drift: Drift) -> str:
    before, now = drift.shares
    order = np.argsort(-abs(now - before), kind='stable')[:_MOST_CLASSES]
    shown = (f'{drift.class_names[i]} {before[i]:.1%} to {now[i]:.1%}' for i in order)
    return f'most changed: {", ".join(shown)}'


def _advise(drift: Drift) -> str:
    if not drift.found:
        return 'No drift was found.'
    names = [change.name for change in drift.found]
    of_predictions = [name for name in names if name in (CONFIDENCE, CLASSES)]
    where = (
        'in the predictions' if len(of_predictions) == len(names)
        else 'in the images, and in the predictions' if of_predictions
        else 'in the images, not in the predictions'
    )  # fmt: skip
    return (
        f'Drift {where}: {", ".join(names)}. The validation accuracy may not hold: look at the new '
        'images, label some hundreds of them, and evaluate on these with --config.data.source.'
    )
