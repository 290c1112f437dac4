"""The one place that knows devices: how a batch lies on them, and how per-device steps are run.

Of the global batch, in its order, each of `accumulation_steps` microbatches is consecutive; of one,
each device has consecutive examples. So BatchNorm's groups lie side by side on any layout.
"""

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flaxcls.errors import UserError
from flaxcls.ops.batch_norm import devices_of_a_group
from flaxcls.system.garbage_collection import garbage_collection_paused

AXIS = 'devices'  # The named axis of the steps over the devices.
_COPIED, _SPLIT, _MICROBATCHES_SPLIT = (
    PartitionSpec(),
    PartitionSpec(AXIS),
    PartitionSpec(None, AXIS),
)


class Layout(NamedTuple):
    """How a global batch lies on the devices of all processes."""

    mesh: Mesh  # Of one axis over the devices.
    mode: str  # jit or pmap.
    accumulation_steps: int  # Parts of a training batch that are computed one after another.
    compiler_options: dict[str, Any] = {}  # Of a step, under jit.

    @property
    def devices(self) -> int:
        return self.mesh.size


def create_layout(
    devices: Sequence[jax.Device],
    *,
    mode: str = 'jit',
    accumulation_steps: int = 1,
    compiler_options: dict[str, Any] | None = None,
) -> Layout:
    """Returns the layout of config.parallel over `devices`.

    Raises:
      UserError: pmap is asked of several processes.
    """
    if mode == 'pmap' and jax.process_count() > 1:
        raise UserError(
            'config.parallel.mode=pmap drives the devices of one process, and there are '
            f'{jax.process_count()}; choose config.parallel.mode=jit.'
        )
    mesh = Mesh(np.array(devices), (AXIS,))
    return Layout(mesh, mode, accumulation_steps, compiler_options or {})


def require_equal_shares(layout: Layout, batch_size: int) -> None:
    """Raises UserError unless a batch can be cut into equal shares."""
    shares = layout.devices * layout.accumulation_steps
    if batch_size % shares:
        lower, upper = batch_size // shares * shares, -(-batch_size // shares) * shares
        closest = upper if not lower else f'{lower} or {upper}'
        steps = f' x {layout.accumulation_steps} accumulation steps'
        raise UserError(
            f'config.batch_size={batch_size} cannot be shared by {layout.devices} devices'
            f'{steps if layout.accumulation_steps > 1 else ""}; choose {closest}.'
        )


def require_whole_groups(layout: Layout, batch_size: int, group_size: int | None) -> None:
    """Raises UserError if a layout would cut BatchNorm's groups, and names layouts that do not.

    Training would give another result than on one device.
    """
    microbatches, group = layout.accumulation_steps, group_size or batch_size
    local = batch_size // microbatches // layout.devices
    if devices_of_a_group(group, local, layout.devices):
        return
    fitting = [
        f'{devices} x {steps}'
        for devices in range(1, layout.devices + 1)
        for steps in range(1, microbatches + 1)
        if batch_size % (devices * steps) == 0
        and devices_of_a_group(group, batch_size // (devices * steps), devices)
    ]
    raise UserError(
        f'config.batch_norm.group_size={group_size} (None: the whole batch) asks for {group} '
        f'examples at once, and {layout.devices} devices x {microbatches} accumulation steps have '
        f'{local} of the {batch_size} each; of devices x accumulation steps, '
        f'{", ".join(fitting[-4:])} would do, or a group_size that divides {local}.'
    )


def require_partners(layout: Layout, batch_size: int, repeats: int) -> None:
    """Raises UserError if shares of a batch are too small for `mixup.next_in_batch`."""
    shares = layout.devices * layout.accumulation_steps
    if batch_size // shares < repeats:
        raise UserError(
            f'config.augment.repeats={repeats} with mixup or cutmix needs as many examples in each '
            f'of the {shares} shares of a batch; choose config.batch_size={repeats * shares} or '
            'larger.'
        )


def parallelize_train_step(step: Callable[..., Any], layout: Layout) -> Callable[..., Any]:
    """Returns the compiled (state, batch of `microbatches_to_devices`) -> (state, sums).

    It donates the old state.
    """
    if layout.mode == 'pmap':
        return _pmap(step, layout, donate_argnums=0)
    mapped = _shard_map(step, layout, (_COPIED, _MICROBATCHES_SPLIT))
    return jax.jit(mapped, donate_argnums=0, compiler_options=layout.compiler_options)


def parallelize_eval_step(step: Callable[..., Any], layout: Layout) -> Callable[..., Any]:
    """Returns the compiled (variables, batch of `to_devices`) -> what `step` sums over devices."""
    if layout.mode == 'pmap':
        return _pmap(step, layout)
    mapped = _shard_map(step, layout, (_COPIED, _SPLIT))
    return jax.jit(mapped, compiler_options=layout.compiler_options)


def _shard_map(step: Callable[..., Any], layout: Layout, in_specs: Any) -> Callable[..., Any]:
    step = garbage_collection_paused()(step)  # As it is traced.
    return jax.shard_map(
        step, mesh=layout.mesh, in_specs=in_specs, out_specs=_COPIED, check_vma=False
    )


def _pmap(step: Callable[..., Any], layout: Layout, **options: Any) -> Callable[..., Any]:
    return jax.pmap(
        garbage_collection_paused()(step),
        axis_name=AXIS,
        devices=list(layout.mesh.devices.flat),
        in_axes=(None, 0),
        out_axes=None,
        **options,
    )


def replicate(tree: Any, layout: Layout) -> Any:
    """Returns the tree with every array copied to all devices."""
    return jax.device_put(tree, NamedSharding(layout.mesh, _COPIED))


def replicated_shapes(tree: Any, layout: Layout) -> Any:
    """Returns the shapes and dtypes of a tree, to be copied to all devices; nothing is computed."""
    sharding = NamedSharding(layout.mesh, _COPIED)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def abstract_inputs(state: Any, batch: Any, layout: Layout) -> tuple[Any, Any]:
    """Returns the shapes of a state and of a global batch [rows, ...] as jit's step takes them."""
    microbatches = layout.accumulation_steps

    def place(x: jax.ShapeDtypeStruct, shape: Sequence[int], spec: PartitionSpec) -> Any:
        sharding = NamedSharding(layout.mesh, spec)
        return jax.ShapeDtypeStruct(shape, x.dtype, sharding=sharding)

    return (
        jax.tree.map(lambda x: place(x, x.shape, _COPIED), state),
        jax.tree.map(
            lambda x: place(
                x, (microbatches, x.shape[0] // microbatches, *x.shape[1:]), _MICROBATCHES_SPLIT
            ),
            batch,
        ),
    )


def to_devices(batches: Iterable[Any], layout: Layout) -> Iterator[Any]:
    """Yields this process's shares of evaluation batches [rows, ...] spread over the devices."""
    return _ahead(batches, lambda x: _place(x, layout, microbatches=None))


def microbatches_to_devices(batches: Iterable[Any], layout: Layout) -> Iterator[Any]:
    """Yields this process's shares of training batches: [microbatches, examples, ...] a device.

    Their rows are in the order of the global batch.
    """
    return _ahead(batches, lambda x: _place(x, layout, microbatches=layout.accumulation_steps))


def _place(x: np.ndarray, layout: Layout, microbatches: int | None) -> jax.Array:
    """Returns the rows [rows, ...] of this process as one array over all devices."""
    here = layout.mesh.local_mesh.size
    if layout.mode == 'pmap':  # The first axis is the device's.
        shape = (microbatches or 1, here, -1, *x.shape[1:])
        x = x.reshape(shape).swapaxes(0, 1)
        return _to_array(x if microbatches else x[:, 0], layout, _SPLIT)
    if microbatches is None:
        return _to_array(x, layout, _SPLIT)
    return _to_array(x.reshape(microbatches, -1, *x.shape[1:]), layout, _MICROBATCHES_SPLIT)


def _to_array(x: np.ndarray, layout: Layout, spec: PartitionSpec) -> jax.Array:
    return jax.make_array_from_process_local_data(NamedSharding(layout.mesh, spec), x)


def _ahead(batches: Iterable[Any], place: Callable[[Any], Any], ahead: int = 2) -> Iterator[Any]:
    """Yields the batches placed, `ahead` of them on their way early."""
    batches = iter(batches)
    queue = collections.deque()
    for batch in itertools.islice(batches, ahead):
        queue.append(jax.tree.map(place, batch))
    while queue:
        yield queue.popleft()
        for batch in itertools.islice(batches, 1):
            queue.append(jax.tree.map(place, batch))


def throttle_dispatch(results: list[Any]) -> None:
    """Waits for the step before the last, so that the host cannot pile up batches on a device."""
    if len(results) > 2:
        jax.block_until_ready(results[-3])


class ProcessConsensus:
    """Lets all processes know, at the same call, that one of them has asked for something.

    Among several processes the result is two calls old, so that nobody waits for it.
    """

    _DELAY = 2

    def __init__(self, layout: Layout):
        self._layout = layout
        add = lambda asked: lax.psum(asked.sum(), AXIS)  # noqa: E731
        self._add = jax.jit(_shard_map(add, layout, (_SPLIT,)))
        self._results = collections.deque()

    def any_process(self, asked: bool) -> bool:
        """Returns whether any process has asked, this call or `_DELAY` calls ago."""
        if jax.process_count() == 1:
            return asked
        here = np.full(self._layout.mesh.local_mesh.size, asked, np.int32)
        self._results.append(self._add(_to_array(here, self._layout, _SPLIT)))
        return len(self._results) > self._DELAY and bool(self._results.popleft())
