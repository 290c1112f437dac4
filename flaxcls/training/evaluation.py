"""Evaluation of a state on the validation set."""

from collections.abc import Callable

from flaxcls.training import metrics, parallel
from flaxcls.training.setup import Setup
from flaxcls.training.state import TrainState


def make_evaluate(setup: Setup) -> Callable[[TrainState], dict[str, float]]:
    """Returns state -> {'val/loss', 'val/accuracy', 'val/top5_accuracy', 'val/count'}."""
    config = setup.config
    eval_step, make_batches = setup.make_eval_step(), setup.make_eval_batches()

    def evaluate(state: TrainState) -> dict[str, float]:
        all_sums = []
        for batch in parallel.to_devices(make_batches(), setup.layout):
            all_sums.append(eval_step(state, batch))
            parallel.throttle_dispatch(all_sums)
        return metrics.summarize(all_sums, 'val', min(config.top_k, config.model.num_classes))

    return evaluate


def describe_evaluation(val: dict[str, float]) -> str:
    """Returns one line about an evaluation."""
    top_k = next(name for name in val if name.startswith('val/top'))
    return (
        f'val/accuracy {val["val/accuracy"]:.2%} of {val["val/count"]}, '
        f'{top_k} {val[top_k]:.2%}, val/loss {val["val/loss"]:.4f}'
    )
