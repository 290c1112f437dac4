"""What training takes of the host's memory: bounded, and the same after many steps."""

import os
import resource
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from flaxcls.ops.batch_norm import batch_norm
from flaxcls.ops.convolution import convolve
from flaxcls.ops.dense import multiply
from flaxcls.ops.fusion import fuse
from flaxcls.ops.pooling import max_pool

LIMIT = 3e9  # Bytes; until memory was given back after each step, this run took 3.1e9 at its peak.


@pytest.mark.skipif(sys.platform != 'linux', reason='a limit on data that Linux has')
@pytest.mark.parametrize('kernels', ['0', '1'])
def test_a_run_fits_into_three_gigabytes(tmp_path, kernels):
    """Whose step computes with 0.6: what is freed is not kept beside what is asked for next."""
    options = {
        'model.name': 'resnet20', 'data.source': 'synthetic:3840', 'data.image_size': 32,
        'batch_size': 384, 'num_epochs': 1,
    }  # fmt: skip
    flags = [f'--config.{key}={value}' for key, value in options.items()]
    command = [sys.executable, '-m', 'flaxcls', 'train', '--config=default', *flags]
    limited = ['sh', '-c', f'ulimit -d {int(LIMIT / 1024)} && exec "$@"', 'sh', *command]
    result = subprocess.run(
        [*limited, f'--workdir={tmp_path / "run"}'],
        capture_output=True,
        text=True,
        env=os.environ | {'FLAXCLS_NATIVE': kernels},
    )
    assert result.returncode == 0, result.stdout + result.stderr


def _resident():
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_nothing_leaks_over_ten_thousand_steps():
    x, kernel = jnp.ones((2, 8, 8, 16)), jnp.ones((3, 3, 16, 16))
    vector, weights = jnp.ones(16), jnp.ones((16, 4))

    @fuse
    def loss(kernel, weights):
        y = convolve(x, kernel, vector, padding=1)
        y, _ = batch_norm(y[None], vector, vector, vector, 1e-5)
        y = max_pool(jax.nn.relu(y[0]), 3, 2, 1)
        return multiply(y.mean((1, 2)), weights).sum()

    step = jax.jit(jax.grad(loss, (0, 1)))
    for index in range(12_000):
        jax.block_until_ready(step(kernel, weights))
        if index == 2_000:
            before = _resident()
    assert _resident() - before < 4e6  # 400 bytes a step.
