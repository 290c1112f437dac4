"""Devices to compile for that need not be there: chips, what they are capable of, topologies."""

import importlib.util
import os
from typing import Any, NamedTuple

from flaxcls.errors import UserError
from flaxcls.system.text import did_you_mean


class Chip(NamedTuple):
    """What a maker states of a chip, for one JAX device.

    Attributes:
      flops: bfloat16 FLOPs per second of dense matrix products.
      bandwidth: bytes per second from and to its memory.
      memory: bytes.
    """

    flops: float
    bandwidth: float
    memory: float


# cloud.google.com/tpu/docs/{v5e,v5p,v6e}; NVIDIA's data sheet of the H100 SXM.
CHIPS = {
    'tpu:v5e': Chip(197e12, 819e9, 16 * 2**30),
    'tpu:v5p': Chip(459e12, 2765e9, 95 * 2**30),
    'tpu:v6e': Chip(918e12, 1640e9, 32 * 2**30),
    'gpu:h100': Chip(989e12, 3352e9, 80e9),
}
# What JAX calls the devices -> what one is capable of; beside NVIDIA's data sheets of the A100 and
# the H200, both SXM.
_KINDS = {
    'TPU v5 lite': CHIPS['tpu:v5e'],
    'TPU v5e': CHIPS['tpu:v5e'],
    'TPU v5': CHIPS['tpu:v5p'],
    'TPU v5p': CHIPS['tpu:v5p'],
    'TPU v6 lite': CHIPS['tpu:v6e'],
    'TPU v6e': CHIPS['tpu:v6e'],
    'NVIDIA H100 80GB HBM3': CHIPS['gpu:h100'],
    'NVIDIA H200': Chip(989e12, 4.8e12, 141e9),
    'NVIDIA A100-SXM4-80GB': Chip(312e12, 2039e9, 80e9),
}
# Of a TPU's compiler; that of a run is 0, with which ResNet-50's step takes it five times as long.
LEAST_EFFORT = -1.0
_DEFAULT_TOPOLOGIES = {'v5e': '2x2', 'v5p': '2x2x1', 'v6e': '2x2'}
# As XLA describes an H100 SXM with 80 GB, CUDA 12.8 and cuDNN 9.7.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 device_memory_size: 84929347584
  cuda_compute_capability { major: 9 }
}
runtime_version { major: 12 minor: 8 patch: 0 }
dnn_version_info { major: 9 minor: 7 }
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
"""


class Hardware(NamedTuple):
    """Devices to compile for.

    Attributes:
      name: as it was asked for, or the kind of the devices that are there.
      devices: for a mesh.
      chip: what one is capable of; None: not known.
    """

    name: str
    devices: list[Any]
    chip: Chip | None


def prepare_environment(name: str | None) -> None:
    """Sets what the compiler of the target reads as JAX is imported.

    JAX's own backend becomes the CPU, since of the target it is the compiler alone that is used.
    """
    if name is None:
        return
    os.environ['JAX_PLATFORMS'] = 'cpu'
    if name.startswith('tpu'):  # Or the compiler would ask the cloud what this machine is.
        os.environ.update(
            TPU_SKIP_MDS_QUERY='1',
            TPU_WORKER_HOSTNAMES='localhost',
            TPU_ACCELERATOR_TYPE='v5litepod-4',
            ALLOW_MULTIPLE_LIBTPU_LOAD='1',  # No chip is held, so several may compile at once.
        )
    elif name.startswith('gpu'):  # Kernels cannot be timed where there is no device.
        flags = os.environ.get('XLA_FLAGS', '')
        os.environ['XLA_FLAGS'] = f'{flags} --xla_gpu_autotune_level=0'.strip()


def is_tpu(name: str | None) -> bool:
    """Returns whether a target is a TPU."""
    return (name or '').startswith('tpu:')


def chip_of(device_kind: str) -> Chip | None:
    """Returns what a device of that `device_kind` is capable of; None: not known."""
    return _KINDS.get(device_kind)


def open_hardware(name: str | None) -> Hardware:
    """Returns the target tpu:KIND[:TOPOLOGY] or gpu:KIND[:COUNT]; None: the devices there are.

    For a target that is not there, `prepare_environment` has to come first.

    Raises:
      UserError: there is no such target, or its compiler is not installed.
    """
    if name is None:
        import jax  # noqa: PLC0415

        devices = jax.devices()
        kind = devices[0].device_kind
        return Hardware(kind, devices, chip_of(kind))
    platform, _, rest = name.partition(':')
    kind, _, shape = rest.partition(':')
    chip = CHIPS.get(f'{platform}:{kind}')
    if chip is None:
        known, remedy = ', '.join(CHIPS), did_you_mean(f'{platform}:{kind}', list(CHIPS))
        raise UserError(
            f'--target={name} is unknown{remedy}; there are {known}, as in '
            f'tpu:v5e:2x4 and gpu:h100:8.'
        )
    import jax  # noqa: PLC0415 - not before `prepare_environment`

    try:
        if platform == 'tpu':
            devices = _tpu_topology(kind, shape or _DEFAULT_TOPOLOGIES[kind])
        else:
            devices = _gpu_topology(shape or '1')
    except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError) as error:
        raise UserError(
            f'--target={name}: there is no such topology ({_first_line(error)}).'
        ) from None
    return Hardware(name, list(devices), chip)


def _tpu_topology(kind: str, shape: str) -> Any:
    _require_package('libtpu', 'tpu')
    from jax.experimental import topologies  # noqa: PLC0415

    options = {'chips_per_host_bounds': (1, 1, 1)} if set(shape.split('x')) == {'1'} else {}
    return topologies.get_topology_desc(
        platform='tpu', topology_name=f'{kind}:{shape}', **options
    ).devices


def _gpu_topology(count: str) -> Any:
    _require_package('jax_cuda12_plugin', 'cuda')
    if not count.isdecimal() or count == '0':
        raise ValueError(f'{count!r} is not a number of devices')
    from jax.experimental import topologies  # noqa: PLC0415

    return topologies.get_topology_desc(
        'h100', 'cuda', target_config=_H100, topology=f'1x{count}x1'
    ).devices


def _require_package(package: str, extra: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f'--target needs {extra.upper()}\'s compiler; run  pip install "flaxcls[{extra}]"'
        )


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
