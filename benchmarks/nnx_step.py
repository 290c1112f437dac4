"""What NNX costs: training steps in NNX beside the Linen step of the same network.

All forms have the same weights, batch and optimizer, and the same program to compile. In a round
each takes `--steps` steps, in an order that turns from round to round; a round's time is that until
the last loss is there, as in a loop that waits for no step. Printed are the median milliseconds of
a step, the median over the rounds of its ratio to Linen's, the fastest round of each, which others
on the machine disturb least, and how long a call keeps Python when nothing is to be computed, which
is what NNX costs by itself: it walks through the module and the optimizer in Python.

    python -m benchmarks.nnx_step
"""

import argparse
import datetime
import functools
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import flax
import jax
import numpy as np
import optax
from flax import nnx

import flaxcls
from flaxcls.models.registry import MODELS

Step = Callable[[], jax.Array]  # Takes one step, and returns its loss.


def _loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _make_optimizer() -> optax.GradientTransformation:
    return optax.sgd(0.01, momentum=0.9)


def prepare_linen(network: nnx.Module, *batch: jax.Array) -> Step:
    """Returns the step of the network's Linen module, from its variables, under jax.jit."""
    optimizer, variables = _make_optimizer(), flaxcls.to_linen(network)
    state = [variables, optimizer.init(variables['params'])]

    @jax.jit
    def step(variables, opt_state, images, labels):
        def loss_fn(params):
            logits, updates = network.linen.apply(
                variables | {'params': params}, images, train=True, mutable=['batch_stats']
            )
            return _loss(logits, labels), updates

        params = variables['params']
        (loss, updates), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
        changes, opt_state = optimizer.update(gradients, opt_state, params)
        updates = updates | {'params': optax.apply_updates(params, changes)}
        return variables | updates, opt_state, loss

    def take():
        *state[:], loss = step(*state, *batch)
        return loss

    return take


def _train(network, optimizer, images, labels):
    loss_fn = lambda network: _loss(network(images), labels)  # noqa: E731
    loss, gradients = nnx.value_and_grad(loss_fn)(network)
    optimizer.update(network, gradients)
    return loss


def _draw(network, optimizer, images, labels):
    """Takes and returns what `_train` does, with nothing to compute."""
    return network.rngs()


def _in_graph_mode(step, *modules):
    return functools.partial(nnx.jit(step), *modules)


def _in_tree_mode(step, *modules):
    return functools.partial(nnx.jit(step, graph=False), *modules)


def _cached(step, *modules):
    return nnx.cached_partial(nnx.jit(step), *modules)


FORMS = {
    'nnx.jit': _in_graph_mode,
    'nnx.cached_partial': _cached,
    'nnx.jit, graph=False': _in_tree_mode,
}


def prepare_nnx(form: str, function: Callable[..., Any], network: nnx.Module, *batch) -> Step:
    """Returns the step that a form makes of `function`, from the network's weights."""
    network = nnx.clone(network)
    optimizer = nnx.Optimizer(network, _make_optimizer(), wrt=nnx.Param)
    return functools.partial(FORMS[form](function, network, optimizer), *batch)


def seconds_of(step: Step, steps: int) -> float:
    """Returns the seconds of a step, from the first call to the last result."""
    began = time.perf_counter()
    for _ in range(steps):
        result = step()
    jax.block_until_ready(result)
    return (time.perf_counter() - began) / steps


def compare(name: str, image_size: int, batch_size: int, steps: int, rounds: int) -> None:
    """Prints a line for each form of the training step of one network."""
    network = flaxcls.create_model(
        name, num_classes=10, api='nnx', image_size=image_size, rngs=nnx.Rngs(0)
    )
    rng = np.random.default_rng(0)
    shape = (batch_size, image_size, image_size, 3)
    images = jax.device_put(rng.standard_normal(shape, np.float32))
    batch = images, jax.device_put(rng.integers(0, 10, batch_size))
    taken = {'Linen, jax.jit': prepare_linen(network, *batch)}
    taken |= {form: prepare_nnx(form, _train, network, *batch) for form in FORMS}
    idle = {form: prepare_nnx(form, _draw, network, *batch) for form in FORMS}
    for step in (*taken.values(), *idle.values()):
        seconds_of(step, 2)  # Compiles.
    found: dict[str, list[float]] = {form: [] for form in taken}
    for turn in range(rounds):
        order = list(taken)[turn % len(taken) :] + list(taken)[: turn % len(taken)]
        for form in order:
            found[form].append(seconds_of(taken[form], steps))
    print(f'{name}, {batch_size} images of {image_size} pixels; {rounds} rounds of {steps} steps')
    linen = found['Linen, jax.jit']
    for form, seconds in found.items():
        ratios = [ours / theirs for ours, theirs in zip(seconds, linen, strict=True)]
        line = f'  {form:21} {1e3 * statistics.median(seconds):8.2f} ms'
        line += f' {statistics.median(ratios):6.3f}x ({min(ratios):.3f} to {max(ratios):.3f})'
        line += f', fastest {1e3 * min(seconds):.2f} ms {min(seconds) / min(linen):.3f}x'
        if form in idle:
            alone = statistics.median(seconds_of(idle[form], 1) for _ in range(20))
            line += f', {1e3 * alone:.2f} ms in Python'
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        'benchmarks.nnx_step', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument('--models', default='resnet20,densenet_bc_100_12')
    parser.add_argument('--image_size', type=int, default=32)
    parser.add_argument('--batch_size', type=int, default=32)
    parser.add_argument('--steps', type=int, default=8, help='of a round')
    parser.add_argument('--rounds', type=int, default=9)
    flags = parser.parse_args()
    models = flags.models.split(',')
    if unknown := set(models) - set(MODELS):
        parser.error(f'--models={",".join(sorted(unknown))} is none of {", ".join(MODELS)}')
    cores = len(os.sched_getaffinity(0))
    print(
        f'{jax.devices()[0].device_kind}, {cores} cores; Python {platform.python_version()}, '
        f'jax {jax.__version__}, flax {flax.__version__}; {datetime.date.today()}'
    )
    for name in models:
        compare(name, flags.image_size, flags.batch_size, flags.steps, flags.rounds)


if __name__ == '__main__':
    main()
