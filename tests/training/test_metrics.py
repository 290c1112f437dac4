"""Masked sums."""

import jax.numpy as jnp
import numpy as np
import pytest

from flaxcls.training.losses import sigmoid_cross_entropy, softmax_cross_entropy
from flaxcls.training.metrics import loss_and_metrics, summarize


def _batch(count, classes, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((count, classes)).astype(np.float32)
    return logits, rng.integers(0, classes, count), rng.random(count) < 0.7


def _sums(logits, labels, mask, *, top_k, targets=None, loss=softmax_cross_entropy):
    targets = jnp.eye(logits.shape[-1])[labels] if targets is None else targets
    losses = loss(jnp.asarray(logits), targets)
    return loss_and_metrics(logits, labels, losses, mask=jnp.asarray(mask), top_k=top_k)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
@pytest.mark.parametrize('top_k', [1, 3, 10, 50])
def test_sums_are_those_of_the_unmasked_examples(smoothing, top_k):
    logits, labels, mask = _batch(40, 10)
    targets = np.eye(10)[labels] * (1 - smoothing) + smoothing / 10
    sums = _sums(
        logits, labels, jnp.array(mask), top_k=top_k, targets=targets if smoothing else None
    )
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    rank = (logits > logits[np.arange(40), labels][:, None]).sum(-1)
    np.testing.assert_allclose(sums['loss_sum'], -(targets * log_p).sum(-1)[mask].sum(), rtol=1e-5)
    assert sums['correct'] == (rank < 1)[mask].sum()
    assert sums['correct_top_k'] == (rank < top_k)[mask].sum()
    assert sums['count'] == mask.sum()


def test_binary_cross_entropy_is_the_mean_over_the_classes():
    logits, labels, mask = _batch(40, 10)
    targets = 0.7 * np.eye(10)[labels] + 0.3 * np.eye(10)[labels[::-1]]
    sums = _sums(
        logits, labels, jnp.array(mask), top_k=1, targets=targets, loss=sigmoid_cross_entropy
    )
    p = 1 / (1 + np.exp(-logits))
    losses = -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).mean(-1)
    np.testing.assert_allclose(sums['loss_sum'], losses[mask].sum(), rtol=1e-5)
    assert sums['correct'] == _sums(logits, labels, jnp.array(mask), top_k=1)['correct']


def test_padding_with_anything_changes_nothing():
    logits, labels, _ = _batch(5, 4)
    mask = jnp.array([True, True, True, False, False])
    sums = _sums(logits, labels, mask, top_k=2)
    logits[3:] = np.nan
    for name, value in _sums(logits, labels, mask, top_k=2).items():
        assert value == sums[name], name


def test_counts_are_integers_and_sums_float32_under_bfloat16():
    logits = jnp.zeros((761, 10), jnp.bfloat16).at[:, 3].set(1)
    labels, mask = jnp.full(761, 3), jnp.ones(761, bool)
    sums = _sums(logits, labels, mask, top_k=5)
    assert sums['correct'] == 761  # bfloat16 would say 760.
    assert sums['correct'].dtype == jnp.int32
    assert sums['loss_sum'].dtype == jnp.float32


def test_summary_does_not_depend_on_the_batches():
    logits, labels, mask = _batch(60, 10)
    parts = [
        _sums(logits[i : i + 20], labels[i : i + 20], jnp.array(mask[i : i + 20]), top_k=5)
        for i in (0, 20, 40)
    ]
    whole = summarize([_sums(logits, labels, jnp.array(mask), top_k=5)], 'val', 5)
    split = summarize(parts, 'val', 5)
    assert set(whole) == {'val/loss', 'val/accuracy', 'val/top5_accuracy', 'val/count'}
    for name in whole:
        np.testing.assert_allclose(split[name], whole[name], rtol=1e-6)
    assert split['val/count'] == mask.sum()
