"""Computes BatchNorm's statistics anew for the weights of a run, exactly, from its training images.

  python -m flaxcls.recalibrate --workdir=runs/digits_resnet20 --out=runs/recalibrated

The running statistics of training lag behind the weights, and those that go with averaged weights
(config.ema) are right to first order only. Here every training image is counted once, as evaluation
shows it: not augmented, and without dropout. Each BatchNorm normalises with the statistics of its
group, as in training, and its new mean and variance are those of all that it saw (PreciseBN,
arXiv:2105.07576, section 3). --out is a run like any other: to be evaluated, or to start from.
"""

import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax

from flaxcls import config as config_lib
from flaxcls import models, parallel
from flaxcls.checkpoint import Checkpoints
from flaxcls.config import parse_overrides
from flaxcls.data import pipeline
from flaxcls.data.augment import make_normalize
from flaxcls.errors import CommandParser, UserError, run_command
from flaxcls.evaluate import describe, load_run, make_evaluate
from flaxcls.models.batch_norm import Moments, pool, unbiased
from flaxcls.run_setup import CLASSES_FILE, CONFIG_FILE, Setup
from flaxcls.steps import AXIS
from flaxcls.train_state import TrainState
from flaxcls.writers import write_atomically


def recalibrate(setup: Setup, state: TrainState) -> dict[str, Any]:
    """Returns {'params': ..., 'batch_stats': ...} of what is evaluated, with statistics made anew.

    Args:
      setup: of the run, with its training images.
      state: its state; of averaged weights, these are taken.

    Raises:
      UserError: the network has no BatchNorm.
    """
    variables = state.evaluated
    if not variables['batch_stats']:
        raise UserError(f'{setup.config.model.name} has no BatchNorm, so nothing to recalibrate.')
    config = setup.config.copy_and_resolve_references()
    config.data.eval_crops = 'center'
    measure = parallel.parallelize_eval_step(make_measure_step(setup), setup.layout)
    batches = pipeline.make_eval_batches(config, setup.source.train)()
    total: dict[Any, Moments] = {}
    for batch in parallel.to_devices(batches, setup.layout):
        total = _add(total, jax.device_get(measure(variables, batch)))
    statistics = {}
    for path, layer in total.items():
        statistics[*path, 'mean'] = np.float32(layer.mean)
        statistics[*path, 'var'] = np.float32(unbiased(layer))
    placed = parallel.replicate(unflatten_dict(statistics), setup.layout)
    return {'params': variables['params'], 'batch_stats': placed}


def make_measure_step(setup: Setup) -> Callable[[Any, dict[str, jax.Array]], Any]:
    """Returns measure(variables, evaluation batch) -> {path of a BatchNorm: its Moments}."""
    normalize = make_normalize(setup.config)

    def measure(variables: Any, batch: dict[str, jax.Array]) -> dict[Any, Moments]:
        model = models.model_from_config(
            setup.config, axis_name=AXIS, measuring=True, mask=batch['mask']
        )
        images = normalize(batch['image'])
        _, updates = model.apply(variables, images, train=False, mutable=['batch_stats'])
        leaves = flatten_dict(updates['batch_stats'])
        here = {path[:-1]: _moments_at(path[:-1], leaves) for path in leaves}
        return {path: pool(lax.all_gather(layer, AXIS)) for path, layer in here.items()}

    return measure


def _moments_at(path: tuple[str, ...], leaves: Mapping[Any, jax.Array]) -> Moments:
    return Moments(*(leaves[*path, name] for name in Moments._fields))


def _add(total: dict[Any, Moments], batch: dict[Any, Moments]) -> dict[Any, Moments]:
    """Returns the moments of both together, in float64."""
    with jax.enable_x64(True):
        wide = jax.tree.map(np.float64, batch)
        if not total:
            return wide
        both = jax.tree.map(lambda *values: jnp.stack(values), total, wide)
        return {path: jax.device_get(pool(parts)) for path, parts in both.items()}


def recalibrate_workdir(
    workdir: str | os.PathLike,
    out: str | os.PathLike,
    *,
    checkpoint: str = 'newest',
    overrides: Mapping[str, Any] | None = None,
) -> tuple[dict[str, float], dict[str, float]]:
    """Writes the recalibrated weights as the run `out`; returns both evaluations, old and new.

    Args:
      workdir: of the run.
      out: the workdir to write.
      checkpoint: newest, best or a step.
      overrides: of the stored config.

    Raises:
      UserError: there is no such run or checkpoint, or one in `out` already.
    """
    out = pathlib.Path(out).expanduser()
    if (out / CONFIG_FILE).exists():
        raise UserError(f'--out={str(out)!r} has a run already; choose another folder.')
    setup, state = load_run(workdir, checkpoint=checkpoint, overrides=overrides, training_too=True)
    evaluate = make_evaluate(setup)
    before = evaluate(state)
    variables = recalibrate(setup, state)
    state = state.replace(**variables, ema={})
    after = evaluate(state)
    config = setup.config.copy_and_resolve_references()
    config.ema.decay = 0.0  # What was averaged is the weights now.
    out.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(out)
    checkpoints.save(state, after)
    checkpoints.close()
    classes = pathlib.Path(workdir).expanduser() / CLASSES_FILE
    write_atomically(out / CLASSES_FILE, classes.read_text(encoding='utf-8'))
    write_atomically(out / CONFIG_FILE, config_lib.to_json(config))
    return before, after


def main(argv: Sequence[str]) -> None:
    parser = CommandParser('flaxcls.recalibrate', __doc__)
    parser.add_argument('--workdir', required=True, help='of the run')
    parser.add_argument('--out', required=True, help='workdir to write')
    parser.add_argument('--checkpoint', default='newest', help='newest (the default), best or step')
    flags, rest = parser.parse_known_args(argv)
    before, after = recalibrate_workdir(
        flags.workdir,
        flags.out,
        checkpoint=flags.checkpoint,
        overrides=parse_overrides(rest, ['--workdir', '--out', '--checkpoint']),
    )
    print(f'before: {describe(before)}\nafter:  {describe(after)}\nwrote {flags.out}')


if __name__ == '__main__':
    run_command(main)
