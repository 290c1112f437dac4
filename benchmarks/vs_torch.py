"""Training steps and forward passes of flaxcls and of PyTorch, side by side in one run.

  python -m benchmarks.vs_torch                              # AlexNet, ResNet-50, DenseNet-121
  python -m benchmarks.vs_torch --models=resnet20,densenet_bc_100_12           # 32x32 pixels
  python -m benchmarks.vs_torch --models=resnet50 --batch=32 --dtype=bfloat16
  python -m benchmarks.vs_torch --models=resnet50 --forms=channels_last-eager --rounds=3

On a GPU if both libraries have one, else on all cores that the process may use. PyTorch's networks
are torchvision's, and `benchmarks.torch_cifar`'s for images of 32x32 pixels. PyTorch runs in
every form of --forms, and the fastest of them counts: NCHW or channels_last, eagerly or with
torch.compile; and forward with BatchNorm folded into convolutions by torch.fx, where it can. Its
step is what torchvision's references do: zero_grad, loss, backward, SGD with momentum. Ours is the
one that a run takes, with augmentation switched off; on a CPU also without kernels, and beside the
same network of Linen's own layers. The rounds alternate between all of them; the median of each
counts, and the spread is that of the middle half.

The limit is what the device itself sets: the layers' products at the rate of one large product,
and then each layer's output written and read once in a pass, and the weights, at the rate of a
copy; both rates are measured before. `make bench-torch` sets up the environment.
"""

import argparse
import functools
import itertools
import os
import statistics
import time
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import optax
import torch

from benchmarks import linen_networks
from benchmarks.our_calls import Call, flaxcls_calls
from benchmarks.torch_calls import torch_calls
from flaxcls.models.registry import MODELS, create_model
from flaxcls.models.summary import count_cost
from flaxcls.ops import native

LAYOUTS, MODES = ('contiguous', 'channels_last'), ('eager', 'compiled')
BESIDE = ('no kernels', 'plain Linen')  # What is timed beside flaxcls.


def jax_calls(
    beside: Sequence[str], name: str, batch: int, dtype: str
) -> dict[str, dict[str, Call]]:
    """Returns the calls of ours, and of those of BESIDE that are named and are there."""
    calls = {'flaxcls': flaxcls_calls(name, batch, dtype)}
    if 'no kernels' in beside and native.available():
        with native.disabled():
            calls['flaxcls, no kernels'] = flaxcls_calls(name, batch, dtype)
    if 'plain Linen' in beside and name in linen_networks.NETWORKS:
        calls['plain Linen'] = linen_calls(name, batch, dtype)
    return calls


def linen_calls(name: str, batch: int, dtype: str) -> dict[str, Call]:
    """Returns {'step': ..., 'forward': ...} of the network in plain Linen, compiled."""
    model = linen_networks.NETWORKS[name]
    size, classes = MODELS[name].image_size, MODELS[name].num_classes
    images = jax.random.normal(jax.random.key(0), (batch, size, size, 3), dtype)
    labels = jax.random.randint(jax.random.key(1), (batch,), 0, classes)
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(2), images)
    optimizer = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.01, momentum=0.9))
    opt_state = optimizer.init(variables['params'])
    train_step = jax.jit(linen_networks.make_train_step(model, optimizer), donate_argnums=(0, 1))
    apply = jax.jit(functools.partial(model.apply, train=False))

    def step():
        nonlocal variables, opt_state
        variables, opt_state = train_step(variables, opt_state, images, labels)
        jax.block_until_ready(variables)

    return {'step': step, 'forward': lambda: jax.block_until_ready(apply(variables, images))}


def measure_rates(dtype: str) -> tuple[float, float]:
    """Returns what PyTorch reaches on the device: FLOP/s of a product, bytes/s of a copy."""
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    side = 2048
    matrix = torch.ones(side, side, dtype=getattr(torch, dtype), device=device)
    numbers = torch.ones(2**26, device=device)
    copied = torch.empty_like(numbers)

    def best(call):
        seconds = []
        for _ in range(8):
            began = time.perf_counter()
            call()
            if device == 'cuda':
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
        return min(seconds)

    moved = 2 * numbers.nbytes
    return 2 * side**3 / best(lambda: matrix @ matrix), moved / best(lambda: copied.copy_(numbers))


def least_seconds(
    name: str, batch: int, dtype: str, rates: tuple[float, float]
) -> dict[str, tuple[float, float]]:
    """Returns the seconds of the products, and of memory, for 'step' and 'forward'."""
    cost = count_cost(create_model(name), MODELS[name].image_size)
    products = 2 * cost.macs * batch / rates[0]
    activations = 2 * cost.activations * batch * jnp.dtype(dtype).itemsize / rates[1]
    weights = 4 * cost.parameters / rates[1]
    # Backward there are two products for each forward, of the input's gradient and the weights'.
    # The weights are read by both passes, their gradients written and read, and the update reads
    # and writes weights and momentum.
    return {
        'step': (3 * products, 2 * activations + 8 * weights),
        'forward': (products, activations + weights),
    }


def measure(calls: dict[str, dict[str, Call]], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Returns {who: {what: seconds of each round}}, after a first call of each that is not kept."""
    seconds = {who: {what: [] for what in kinds} for who, kinds in calls.items()}
    for round_ in range(rounds + 1):
        for who, kinds in calls.items():
            for what, call in kinds.items():
                began = time.perf_counter()
                call()
                if round_:
                    seconds[who][what].append(time.perf_counter() - began)
    return seconds


def describe(
    seconds: dict[str, dict[str, list[float]]], batch: int, least: dict[str, tuple[float, float]]
) -> Iterator[str]:
    """Yields a line for each, in images per second; ours beside PyTorch's best and the limit."""
    for what in ('step', 'forward'):
        medians = {
            who: statistics.median(kinds[what]) for who, kinds in seconds.items() if what in kinds
        }
        best = min(value for who, value in medians.items() if who.startswith('torch'))
        for who, median in sorted(medians.items(), key=lambda item: item[1]):
            slow, _, fast = statistics.quantiles(seconds[who][what], n=4)[::-1]
            yield (
                f'  {what:8} {who:24} {batch / median:8.1f} images/s ({batch / slow:.1f} to '
                f'{batch / fast:.1f})'
            )
        ours, (products, memory) = medians['flaxcls'], least[what]
        yield f'  {what:8} flaxcls to the best of PyTorch: {best / ours:.2f}x'
        yield (
            f'  {what:8} flaxcls to the limit: {(products + memory) / ours:.2f}x ({ours:.3f} s; '
            f'products {products:.3f} s, memory {memory:.3f} s)'
        )


def main() -> None:
    forms = ['-'.join(form) for form in itertools.product(LAYOUTS, MODES)]
    parser = argparse.ArgumentParser(
        'benchmarks.vs_torch', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument('--models', default='alexnet,resnet50,densenet121')
    parser.add_argument('--batch', type=int, help='default: 16, and 128 for small images')
    parser.add_argument('--dtype', default='float32', choices=['float32', 'bfloat16'])
    parser.add_argument('--forms', default=','.join(forms), help=f'of PyTorch: {", ".join(forms)}')
    parser.add_argument('--beside', default=','.join(BESIDE), help=f'of JAX: {", ".join(BESIDE)}')
    parser.add_argument('--rounds', type=int, default=7)
    flags = parser.parse_args()
    if unknown := set(flags.forms.split(',')) - set(forms):
        parser.error(f'--forms={",".join(sorted(unknown))} is none of {", ".join(forms)}')
    if flags.rounds < 2:
        parser.error(f'--rounds={flags.rounds} must be 2 or more, since a spread is reported')
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    versions = f'jax {jax.__version__}, torch {torch.__version__}; kernels: {native.status()}'
    where = f'{jax.devices()[0].device_kind}, {cores} cores'
    print(f'{where}; {versions}; {flags.dtype}', flush=True)
    rates = measure_rates(flags.dtype)
    print(f'{rates[0] / 1e9:.0f} GFLOP/s, {rates[1] / 1e9:.1f} GB/s', flush=True)
    for name in flags.models.split(','):
        size = MODELS[name].image_size
        batch = flags.batch or (128 if size < 64 else 16)
        calls = jax_calls(flags.beside.split(','), name, batch, flags.dtype)
        fused = [] if torch.cuda.is_available() else ['channels_last-fused']
        for form in [*flags.forms.split(','), *fused]:
            layout, mode = form.split('-')
            calls[f'torch {form}'] = torch_calls(name, batch, flags.dtype, layout, mode)
        print(f'{name}, batch {batch} at {size}x{size}', flush=True)
        least = least_seconds(name, batch, flags.dtype, rates)
        for line in describe(measure(calls, flags.rounds), batch, least):
            print(line, flush=True)


if __name__ == '__main__':
    main()
