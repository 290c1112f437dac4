"""The one place that knows devices: runs per-device steps as jit over a mesh of all of them."""

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flaxcls.errors import UserError
from flaxcls.steps import AXIS

_SPLIT, _COPIED = PartitionSpec(AXIS), PartitionSpec()


def create_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh of one axis over `devices`; None: all there are.

    Raises:
      UserError: they belong to several processes, which evaluation does not add up yet.
    """
    if jax.process_count() > 1:
        raise UserError(
            f'jax runs in {jax.process_count()} processes, and flaxcls in one only; start it '
            'without jax.distributed, on one host.'
        )
    return Mesh(np.array(devices or jax.devices()), (AXIS,))


def require_divisible(batch_size: int, mesh: Mesh) -> None:
    """Raises UserError unless every device gets an equal share of the batch."""
    if batch_size % mesh.size:
        lower, upper = batch_size // mesh.size * mesh.size, -(-batch_size // mesh.size) * mesh.size
        nearest = upper if not lower else f'{lower} or {upper}'
        raise UserError(
            f'config.batch_size={batch_size} cannot be shared by {mesh.size} devices; '
            f'choose {nearest}.'
        )


def parallelize_train_step(step: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Returns the compiled (state, global batch) -> (state, sums); the old state is given up."""
    mapped = jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(_COPIED, _SPLIT),
        out_specs=(_COPIED, _COPIED),
        check_vma=False,
    )
    return jax.jit(mapped, donate_argnums=0)


def parallelize_eval_step(step: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Returns the compiled (state, global batch) -> sums."""
    mapped = jax.shard_map(
        step, mesh=mesh, in_specs=(_COPIED, _SPLIT), out_specs=_COPIED, check_vma=False
    )
    return jax.jit(mapped)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Returns the tree with every array copied to all devices."""
    return jax.device_put(tree, NamedSharding(mesh, _COPIED))


def to_devices(batches: Iterable[Any], mesh: Mesh, ahead: int = 2) -> Iterator[Any]:
    """Yields the batches spread over the devices, `ahead` of them on their way early."""
    sharding = NamedSharding(mesh, _SPLIT)
    place = lambda x: jax.make_array_from_process_local_data(sharding, x)  # noqa: E731
    batches = iter(batches)
    queue = collections.deque()
    for batch in itertools.islice(batches, ahead):
        queue.append(jax.tree.map(place, batch))
    while queue:
        yield queue.popleft()
        for batch in itertools.islice(batches, 1):
            queue.append(jax.tree.map(place, batch))


def limit_run_ahead(results: list[Any]) -> None:
    """Waits for the step before the last, so that the host cannot pile up batches on a device."""
    if len(results) > 2:
        jax.block_until_ready(results[-3])
