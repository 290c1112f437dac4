"""What it takes until a run computes: weights, the compiled step of DenseNet-121, a second start.

  python -m benchmarks.start_up
  python -m benchmarks.start_up --parts=init
  python -m benchmarks.start_up --parts=compile --rounds=5      # a minute or two a round
  python -m benchmarks.start_up --parts=starts --config=experiments/digits_densenet.py

init draws every network's weights, one after another, with nothing compiled before. compile
lowers and compiles the training step of DenseNet-121, batch 16 at 224 pixels, ours beside one of
Linen's own layers, in alternating rounds. starts begins a run in a new process with an empty
compilation cache, and again with the cache that the first has left, each up to the end of its
first step. All on the devices that JAX finds; the persistent cache is off for the first two.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from benchmarks import linen_networks
from flaxcls.config.files import load_config
from flaxcls.models.init import init_variables
from flaxcls.models.registry import MODELS, create_model
from flaxcls.planning.compiled import abstract_inputs
from flaxcls.training import parallel
from flaxcls.training.setup import build_setup

BATCH, SIZE = 16, 224
PARTS = ('init', 'compile', 'starts')


def time_init() -> None:
    """Prints the seconds that each network's weights take."""
    slowest = 0.0
    for name, variant in MODELS.items():
        model = create_model(name)
        began = time.perf_counter()
        jax.block_until_ready(init_variables(model, jax.random.key(0), variant.image_size))
        seconds = time.perf_counter() - began
        slowest = max(slowest, seconds)
        print(f'  init {name:22} {seconds:6.2f} s', flush=True)
    print(f'  init, the slowest           {slowest:6.2f} s')


def time_compilation(rounds: int) -> None:
    """Prints the seconds for lowering and compiling DenseNet-121's step, ours and plain Linen's."""
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        for who, compile_step in (('flaxcls', _compile_ours), ('plain Linen', _compile_plain)):
            jax.clear_caches()
            began = time.perf_counter()
            compile_step()
            found.setdefault(who, []).append(time.perf_counter() - began)
    medians = {who: statistics.median(seconds) for who, seconds in found.items()}
    for who, seconds in found.items():
        spread = f'{min(seconds):.1f} to {max(seconds):.1f}'
        print(f'  compile {who:12} {medians[who]:6.1f} s ({spread}), {rounds} rounds')
    print(f'  compile flaxcls to plain Linen: {medians["flaxcls"] / medians["plain Linen"]:.2f}x')


def _compile_ours() -> None:
    options = {
        'model.name': 'densenet121', 'model.num_classes': 1000, 'batch_size': BATCH,
        'data.source': f'synthetic:{2 * BATCH}', 'data.image_size': SIZE,
    }  # fmt: skip
    setup = build_setup(load_config(None, options), devices=jax.devices()[:1])
    step = parallel.parallelize_train_step(setup.train_step, setup.layout)
    step.lower(*abstract_inputs(setup)).compile()


def _compile_plain() -> None:
    model = linen_networks.NETWORKS['densenet121']
    optimizer = optax.sgd(0.1, momentum=0.9, nesterov=True)
    images = jax.ShapeDtypeStruct((BATCH, SIZE, SIZE, 3), jnp.float32)
    labels = jax.ShapeDtypeStruct((BATCH,), jnp.int32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)

    step = linen_networks.make_train_step(model, optimizer)
    opt_state = jax.eval_shape(optimizer.init, variables['params'])
    jax.jit(step, donate_argnums=(0, 1)).lower(variables, opt_state, images, labels).compile()


def time_starts(config: str) -> None:
    """Prints the seconds from the start of a run's process to the end of its first step."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {'XDG_CACHE_HOME': folder}
        environment.pop('JAX_COMPILATION_CACHE_DIR', None)
        for which in ('first', 'second'):
            seconds = _seconds_to_first_step(config, f'{folder}/{which}', environment)
            print(f'  {which:6} start of {config}: {seconds:.1f} s to the first step', flush=True)


def _seconds_to_first_step(config: str, workdir: str, environment: dict[str, str]) -> float:
    command = [sys.executable, '-m', 'flaxcls', 'train', f'--config={config}']
    command.append(f'--workdir={workdir}')
    command += ['--config.log_every_steps=1']
    began = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as run:
        while not _has_record(f'{workdir}/metrics.jsonl'):
            if run.poll() is not None:
                raise SystemExit(f'error: {" ".join(command)} has ended with {run.returncode}.')
            time.sleep(0.05)
        seconds = time.perf_counter() - began
        run.kill()
    return seconds


def _has_record(path: str) -> bool:
    try:
        with open(path, encoding='utf-8') as file:
            return bool(re.search('"train/loss"', file.read()))
    except FileNotFoundError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(
        'benchmarks.start_up', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument('--parts', default=','.join(PARTS), help=f'of {", ".join(PARTS)}')
    parser.add_argument('--rounds', type=int, default=5, help='of compile')
    parser.add_argument('--config', default='experiments/digits_densenet.py', help='of starts')
    flags = parser.parse_args()
    parts = flags.parts.split(',')
    if unknown := set(parts) - set(PARTS):
        parser.error(f'--parts={",".join(sorted(unknown))} is none of {", ".join(PARTS)}')
    if flags.rounds < 1:
        parser.error(f'--rounds={flags.rounds} must be positive')
    cores = len(os.sched_getaffinity(0))
    print(f'{jax.devices()[0].device_kind}, {cores} cores; jax {jax.__version__}', flush=True)
    jax.config.update('jax_enable_compilation_cache', False)
    run: dict[str, Callable[[], None]] = {
        'init': time_init,
        'compile': lambda: time_compilation(flags.rounds),
        'starts': lambda: time_starts(flags.config),
    }
    for part in parts:
        run[part]()


if __name__ == '__main__':
    main()
