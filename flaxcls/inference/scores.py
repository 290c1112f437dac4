"""What labels, predictions and probabilities say of a classifier: pure functions of NumPy arrays.

Examples are N and classes C; labels and predictions are int [N], logits and probabilities [N, C].
scikit-learn and SciPy compute what they have; they are imported when called, since that takes time.
"""

from typing import NamedTuple

import numpy as np

BINS = 15  # Of the calibration error; as many as in arXiv:1706.04599.
TEMPERATURES = (0.01, 100.0)  # Between which one is looked for.
_RESAMPLES = 20_000


class ClassScores(NamedTuple):
    """Of each class: float64 [C], and the number of its examples, int64 [C]."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray


def class_scores(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> ClassScores:
    """Returns precision, recall, F1 and support; 0 where one would be divided by no example."""
    from sklearn.metrics import precision_recall_fscore_support  # noqa: PLC0415 - slow to import

    scores = precision_recall_fscore_support(
        labels, predicted, labels=np.arange(num_classes), zero_division=0
    )
    return ClassScores(*scores)


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns int64 [C, C]: how many examples of the row's class were predicted as the column's.

    Raises:
      ValueError: a label or a prediction is not a class.
    """
    from sklearn import metrics  # noqa: PLC0415 - slow to import

    both = np.concatenate([labels, predicted])
    if both.min() < 0 or both.max() >= num_classes:  # scikit-learn leaves such examples out.
        raise ValueError(f'classes are 0 to {num_classes - 1}, not {both.min()} to {both.max()}.')
    return metrics.confusion_matrix(labels, predicted, labels=np.arange(num_classes))


def log_loss(labels: np.ndarray, logits: np.ndarray, temperature: float = 1.0) -> float:
    """Returns the mean cross-entropy, in nats, of the softmax of logits / temperature."""
    # scikit-learn's takes probabilities and clips them: of float64 no example loses more than 36.
    from scipy.special import logsumexp  # noqa: PLC0415 - slow to import

    return float(np.mean(logsumexp(_relative(labels, logits) / temperature, axis=1)))


def _relative(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Returns float64 [N, C]: the logits less that of the label."""
    wide = np.asarray(logits, np.float64)
    return wide - wide[np.arange(len(labels)), labels][:, None]


def top_k_accuracy(labels: np.ndarray, logits: np.ndarray, k: int) -> float:
    """Returns how often the label is among the k best; of equal logits, the first is better."""
    # Of equal logits scikit-learn takes the last; it refuses two classes, and sorts all of them.
    true = logits[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(logits.shape[1]) < labels[:, None]
    better = (logits > true) | ((logits == true) & earlier)
    return int((better.sum(1) < k).sum()) / len(labels)


class Reliability(NamedTuple):
    """The mean confidence and the accuracy of each of B bins.

    Attributes:
      edges: float64 [B + 1], of the bins, from 0 to 1; a bin holds its upper edge.
      confidence: float64 [B], the mean probability of the predictions; NaN in an empty bin.
      accuracy: float64 [B], the share of right ones; NaN in an empty bin.
      count: int64 [B].
    """

    edges: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray


def reliability(labels: np.ndarray, probabilities: np.ndarray, bins: int = BINS) -> Reliability:
    """Returns the reliability diagram of `bins` equally wide bins (arXiv:1706.04599, eq. 1, 2)."""
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    edges = np.linspace(0, 1, bins + 1)
    places = np.digitize(confidence, edges[1:-1], right=True)
    count = np.bincount(places, minlength=bins)
    with np.errstate(invalid='ignore'):  # Empty bins.
        return Reliability(
            edges,
            np.bincount(places, confidence, minlength=bins) / count,
            np.bincount(places, correct, minlength=bins) / count,
            count,
        )


def expected_calibration_error(
    labels: np.ndarray, probabilities: np.ndarray, bins: int = BINS
) -> float:
    """Returns the mean of |accuracy - confidence| over the examples (arXiv:1706.04599, eq. 3)."""
    diagram = reliability(labels, probabilities, bins)
    gaps = np.nan_to_num(np.abs(diagram.accuracy - diagram.confidence))  # An empty bin has none.
    return float(np.sum(gaps * diagram.count) / len(labels))


def fit_temperature(labels: np.ndarray, logits: np.ndarray) -> float:
    """Returns the T whose softmax of logits / T has the least log loss (arXiv:1706.04599, 4.2).

    The search is within TEMPERATURES. Where every prediction is right, a smaller T always has a
    smaller loss, and the data does not determine T: the result is 1, which changes nothing.
    """
    from scipy.optimize import minimize_scalar  # noqa: PLC0415 - slow to import
    from scipy.special import logsumexp  # noqa: PLC0415

    if np.all(logits.argmax(1) == labels):
        return 1.0
    relative = _relative(labels, logits)
    # The loss is convex in 1/T, so that in log T as well it falls and then rises.
    found = minimize_scalar(
        lambda log_t: np.mean(logsumexp(relative / np.exp(log_t), axis=1)),
        bounds=np.log(TEMPERATURES),
        method='bounded',
        options={'xatol': 1e-6},
    )
    return float(np.exp(found.x))


def accuracy_interval(
    correct: np.ndarray, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Returns the bounds within which the accuracy on all such examples lies with `confidence`.

    This is the percentile interval of the bootstrap. A resample of N examples has a binomial number
    of right ones, of N draws with the share that is right, so these numbers are drawn themselves.
    Where all are right, or none, every resample is alike and its interval would be a point; there
    it is the exact one of Clopper and Pearson, such as 97.5 % to 100 % for 146 right ones of 146.

    Args:
      correct: bool [N].
      confidence: between 0 and 1.
      seed: from which the bootstrap samples are drawn.
    """
    from scipy.stats import binomtest  # noqa: PLC0415 - slow to import

    count, right = len(correct), int(np.sum(correct))
    if right in (0, count):
        exact = binomtest(right, count).proportion_ci(confidence, method='exact')
        return float(exact.low), float(exact.high)
    resamples = np.random.default_rng(seed).binomial(count, right / count, _RESAMPLES) / count
    low, high = np.quantile(resamples, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
