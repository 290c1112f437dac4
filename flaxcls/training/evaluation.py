"""Evaluation on a set of batches, every example once."""

from collections.abc import Callable, Iterable
from typing import Any

from flaxcls.training import metrics, parallel


def make_evaluate(
    eval_step: Callable[[Any, Any], metrics.Sums],
    make_batches: Callable[[], Iterable[Any]],
    layout: parallel.Layout,
    top_k: int,
) -> Callable[[Any], dict[str, float]]:
    """Returns variables -> {'val/loss', 'val/accuracy', 'val/top{k}_accuracy', 'val/count'}.

    Args:
      eval_step: compiled, of (variables, batch); see `steps.make_eval_step`.
      make_batches: the batches on the host.
      layout: how batches are split over devices.
      top_k: k of the step's metrics.
    """

    def evaluate(variables: Any) -> dict[str, float]:
        all_sums = []
        for batch in parallel.to_devices(make_batches(), layout):
            all_sums.append(eval_step(variables, batch))
            parallel.throttle_dispatch(all_sums)
        return metrics.summarize(all_sums, 'val', top_k)

    return evaluate


def describe_evaluation(val: dict[str, float]) -> str:
    """Returns one line about an evaluation."""
    top_k = next(name for name in val if name.startswith('val/top'))
    return (
        f'val/accuracy {val["val/accuracy"]:.2%} of {val["val/count"]}, '
        f'{top_k} {val[top_k]:.2%}, val/loss {val["val/loss"]:.4f}'
    )
