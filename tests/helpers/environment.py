"""What the processes of tests are started with."""

import os
from importlib.metadata import version

INSECURE_HOST = 'elsewhere.test'  # Resolves to this machine, in the tests' browser alone.
# Tiny networks spend their time in the compiler; tests that need the real program unset these.
COMPILED_FAST = {
    'JAX_DISABLE_MOST_OPTIMIZATIONS': 'true',
    # XLA ends at a flag that it does not know; later versions do not know this one.
    'XLA_FLAGS': '--xla_cpu_use_fusion_emitters=false' if version('jaxlib') < '0.11' else '',
}


def with_devices(count):
    """Returns the environment of a process that is to see `count` devices."""
    flags = COMPILED_FAST['XLA_FLAGS']
    return os.environ | {'XLA_FLAGS': f'{flags} --xla_force_host_platform_device_count={count}'}
