"""BatchNorm's statistics computed anew, exactly (PreciseBN, arXiv:2105.07576, section 3)."""

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax

from flaxcls.augment.transforms import make_normalize
from flaxcls.config import options
from flaxcls.data import pipeline
from flaxcls.errors import UserError
from flaxcls.models import from_config
from flaxcls.ops.batch_norm import Moments, merge_moments, unbiased
from flaxcls.system.files import write_atomically
from flaxcls.training import parallel
from flaxcls.training.checkpoints import Checkpoints
from flaxcls.training.evaluation import make_evaluate
from flaxcls.training.restore import load_run
from flaxcls.training.setup import Setup
from flaxcls.training.state import AXIS, TrainState
from flaxcls.training.workdir import CLASSES_FILE, CONFIG_FILE


def compute_precise_bn(setup: Setup, state: TrainState) -> dict[str, Any]:
    """Returns {'params': ..., 'batch_stats': ...} of what is evaluated, with statistics made anew.

    Args:
      setup: of the run, with its training images.
      state: its state; of averaged weights, these are taken.

    Raises:
      UserError: the network has no BatchNorm.
    """
    variables = state.eval_variables
    if not variables['batch_stats']:
        raise UserError(
            f'{setup.config.model.name} has no BatchNorm, whose statistics could be computed anew.'
        )
    config = setup.config.copy_and_resolve_references()
    config.data.eval_crops = 'center'
    measure = parallel.parallelize_eval_step(make_moments_step(setup), setup.layout)
    batches = pipeline.make_eval_batches(config, setup.dataset.train)()
    total: dict[Any, Moments] = {}
    for batch in parallel.to_devices(batches, setup.layout):
        total = _add(total, jax.device_get(measure(variables, batch)))
    statistics = {}
    for path, layer in total.items():
        statistics[*path, 'mean'] = np.float32(layer.mean)
        statistics[*path, 'var'] = np.float32(unbiased(layer))
    placed = parallel.replicate(unflatten_dict(statistics), setup.layout)
    return {'params': variables['params'], 'batch_stats': placed}


def make_moments_step(setup: Setup) -> Callable[[Any, dict[str, jax.Array]], Any]:
    """Returns measure(variables, evaluation batch) -> {path of a BatchNorm: its Moments}."""
    normalize = make_normalize(setup.config)

    def measure(variables: Any, batch: dict[str, jax.Array]) -> dict[Any, Moments]:
        model = from_config.model_from_config(
            setup.config, axis_name=AXIS, collect_statistics=True, mask=batch['mask']
        )
        images = normalize(batch['image'])
        _, updates = model.apply(variables, images, train=False, mutable=['batch_stats'])
        leaves = flatten_dict(updates['batch_stats'])
        here = {path[:-1]: _moments_at(path[:-1], leaves) for path in leaves}
        return {path: merge_moments(lax.all_gather(layer, AXIS)) for path, layer in here.items()}

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
        return {path: jax.device_get(merge_moments(parts)) for path, parts in both.items()}


def precise_bn_workdir(
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
    variables = compute_precise_bn(setup, state)
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
    write_atomically(out / CONFIG_FILE, options.to_json(config))
    return before, after
