"""Training steps and forward passes of flaxcls, compiled, to be timed or weighed by others."""

from collections.abc import Callable

import jax
import numpy as np

from flaxcls.config.files import load_config
from flaxcls.models.registry import MODELS
from flaxcls.training import parallel
from flaxcls.training.setup import build_setup

Call = Callable[[], None]  # One step, waited for.


def flaxcls_calls(name: str, batch: int, dtype: str) -> dict[str, Call]:
    """Returns {'step': ..., 'forward': ...} of ours, compiled."""
    size, classes = MODELS[name].image_size, MODELS[name].num_classes
    options = {
        'model.name': name, 'model.num_classes': classes, 'model.dtype': dtype,
        'data.source': f'synthetic:{2 * batch}', 'data.image_size': size, 'batch_size': batch,
    }  # fmt: skip
    setup = build_setup(load_config(None, options))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, size, size, 3), np.uint8)
    labels = rng.integers(0, classes, batch).astype(np.int32)
    data = {'image': images, 'label': labels}
    train_data = next(parallel.microbatches_to_devices(iter([data]), setup.layout))
    eval_data = data | {'mask': np.ones(batch, bool)}
    eval_data = next(parallel.to_devices(iter([eval_data]), setup.layout))
    train_step, eval_step = setup.make_train_step(), setup.make_eval_step()
    state = setup.init_state()

    def step():
        nonlocal state
        state, sums = train_step(state, train_data)
        jax.block_until_ready((state, sums))

    def forward():
        jax.block_until_ready(eval_step(state.eval_variables, eval_data))

    step(), forward()  # Traced while kernels are wanted, or not.
    return {'step': step, 'forward': forward}
