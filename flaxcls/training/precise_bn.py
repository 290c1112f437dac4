"""BatchNorm's statistics computed anew, exactly (PreciseBN, arXiv:2105.07576, section 3)."""

import functools
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax

from flaxcls.config.config_dict import to_json
from flaxcls.config.workdir import (
    CLASSES_FILE,
    CONFIG_FILE,
    DATA_FILE,
    load_stored_config,
    require_stored_classes,
)
from flaxcls.data import pipeline
from flaxcls.errors import UserError
from flaxcls.ops.batch_norm import Moments, merge_moments, unbiased
from flaxcls.system.files import write_atomically
from flaxcls.training import parallel
from flaxcls.training.checkpoint_files import read_run_state
from flaxcls.training.checkpoints import Checkpoints
from flaxcls.training.evaluation import make_evaluate
from flaxcls.training.parallel import AXIS
from flaxcls.training.setup import Setup, build_setup, resolve


def compute_precise_bn(setup: Setup, variables: dict[str, Any]) -> dict[str, Any]:
    """Returns {'params': ..., 'batch_stats': ...} with statistics computed anew.

    Args:
      setup: of the run, with its training images.
      variables: {'params': ..., 'batch_stats': ...}.

    Raises:
      UserError: the network has no BatchNorm.
    """
    if not variables['batch_stats']:
        raise UserError(f'{setup.model_name} has no BatchNorm, so there is nothing to compute.')
    step = make_moments_step(setup.model, setup.normalize)
    measure = parallel.parallelize_eval_step(step, setup.layout)
    # Every training image, as evaluation shows it.
    batches = pipeline.make_eval_batches(
        setup.dataset.train,
        setup.eval_crop._replace(tta='center'),
        batch_size=setup.batch_size,
        num_threads=setup.num_threads,
    )
    total: dict[Any, Moments] = {}
    for batch in parallel.to_devices(batches(), setup.layout):
        total = _add(total, jax.device_get(measure(variables, batch)))
    statistics = {}
    for path, layer in total.items():
        statistics[*path, 'mean'] = np.float32(layer.mean)
        statistics[*path, 'var'] = np.float32(unbiased(layer))
    placed = parallel.replicate(unflatten_dict(statistics), setup.layout)
    return {'params': variables['params'], 'batch_stats': placed}


def make_moments_step(
    model: nn.Module, normalize: Callable[[jax.Array], jax.Array]
) -> Callable[[Any, dict[str, jax.Array]], Any]:
    """Returns measure(variables, evaluation batch) -> {path of a BatchNorm: its Moments}."""

    def measure(variables: Any, batch: dict[str, jax.Array]) -> dict[Any, Moments]:
        norm = functools.partial(model.norm, collect_statistics=True, mask=batch['mask'])
        images = normalize(batch['image'])
        _, updates = model.clone(norm=norm).apply(
            variables, images, train=False, mutable=['batch_stats']
        )
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
        return {path: jax.device_get(merge_moments(pair)) for path, pair in both.items()}


def precise_bn_workdir(
    workdir: str | os.PathLike,
    out: str | os.PathLike,
    *,
    checkpoint: str = 'newest',
    overrides: Mapping[str, Any] | None = None,
) -> tuple[dict[str, float], dict[str, float]]:
    """Writes a run with its statistics computed anew; returns both evaluations, old and new.

    Args:
      workdir: path of the directory that the run was trained in.
      out: the workdir to write.
      checkpoint: newest, best or a step.
      overrides: of the stored config.

    Raises:
      UserError: there is no such run or checkpoint, or one in `out` already.
    """
    out = pathlib.Path(out).expanduser()
    if (out / CONFIG_FILE).exists():
        raise UserError(f'--out={str(out)!r} has a run already; choose another folder.')
    workdir = pathlib.Path(workdir).expanduser()
    config = load_stored_config(workdir, overrides)
    setup = build_setup(config, workdir=workdir)
    require_stored_classes(workdir, setup.dataset.class_names, setup.source)
    _, state = read_run_state(workdir, checkpoint, setup.abstract_state())
    evaluate = make_evaluate(
        setup.make_eval_step(), setup.make_eval_batches(), setup.layout, setup.top_k
    )
    before = evaluate(state.eval_variables)
    state = state.replace(**compute_precise_bn(setup, state.eval_variables), ema={})
    after = evaluate(state.eval_variables)
    config = resolve(config, setup).unlock()
    config.ema.decay = 0.0  # What was averaged is the weights now.
    out.mkdir(parents=True, exist_ok=True)
    with Checkpoints(out) as checkpoints:
        checkpoints.save(state, after)
    for name in (CLASSES_FILE, DATA_FILE):
        if (workdir / name).exists():
            write_atomically(out / name, (workdir / name).read_bytes())
    write_atomically(out / CONFIG_FILE, to_json(config))
    return before, after
