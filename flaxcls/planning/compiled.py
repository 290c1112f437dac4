"""What a training step needs, read from its compiled program."""

import collections
import contextlib
import math
import re
from typing import Any, NamedTuple

import jax

from flaxcls.ops import native
from flaxcls.training import parallel
from flaxcls.training.setup import Setup

_COLLECTIVE = re.compile(
    r'= (.+?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\('
)
_ARRAY = re.compile(r'(pred|[a-z]+\d+\w*)\[([\d,]*)\]')


class Memory(NamedTuple):
    """Bytes on each device.

    Attributes:
      weights: parameters and BatchNorm's running statistics.
      optimizer: its state, and the averaged weights if there are any.
      batch: the images and labels of a step.
      temporary: what the step computes on the way: activations and gradients above all.
      program: machine code.
    """

    weights: int
    optimizer: int
    batch: int
    temporary: int
    program: int

    @property
    def total(self) -> int:
        return sum(self)


class StepResources(NamedTuple):
    """Of one training step, on each device.

    Attributes:
      memory: bytes, by kind.
      traffic: bytes from and to the device's memory; None where the compiler does not count them.
      collectives: kind -> (number, bytes), of what is sent between devices.
    """

    memory: Memory
    traffic: float | None
    collectives: dict[str, tuple[int, int]]


def compile_train_step(setup: Setup, compiler_options: dict[str, Any] | None = None) -> Any:
    """Returns the training step of `setup`, compiled for its layout with nothing computed."""
    # The inputs are laid out as jit takes them, and pmap's step is the same program.
    setup = setup._replace(layout=setup.layout._replace(mode='jit'))
    here = setup.layout.mesh.devices.flat[0].platform == 'cpu'
    with contextlib.nullcontext() if here else native.disabled():
        lowered = setup.make_train_step().lower(*abstract_inputs(setup))
    return lowered.compile(compiler_options)


def abstract_inputs(setup: Setup) -> tuple[Any, Any]:
    """Returns shapes, dtypes and shardings of the state and of a batch."""
    size, rows = setup.train_crop.size, setup.batch_size
    batch = {
        'image': jax.ShapeDtypeStruct((rows, size, size, 3), 'uint8'),
        'label': jax.ShapeDtypeStruct((rows,), 'int32'),
    }
    return parallel.abstract_inputs(setup.abstract_state(), batch, setup.layout)


def step_resources(compiled: Any, setup: Setup) -> StepResources:
    """Returns what the compiled step of `setup` needs."""
    state, batch = abstract_inputs(setup)
    memory = compiled.memory_analysis()
    weights = _bytes((state.params, state.batch_stats))
    costs = compiled.cost_analysis() or {}
    return StepResources(
        Memory(
            weights=weights,
            optimizer=_bytes(state) - weights,
            batch=_bytes(batch) // setup.layout.devices,
            # The new state takes the place of the old one, and the sums are a few numbers.
            temporary=memory.temp_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes,
            program=memory.generated_code_size_in_bytes,
        ),
        costs.get('bytes accessed'),
        collectives(compiled.as_text()),
    )


def collectives(hlo: str) -> dict[str, tuple[int, int]]:
    """Returns the collectives of a compiled program: kind -> (number, bytes of their results)."""
    found = collections.defaultdict(lambda: (0, 0))
    for shapes, kind in _COLLECTIVE.findall(hlo):
        number, size = found[kind]
        sizes = [
            _bits(dtype) // 8 * math.prod(int(n) for n in shape.split(',') if n)
            for dtype, shape in _ARRAY.findall(shapes)
        ]
        found[kind] = number + 1, size + sum(sizes)
    return dict(found)


def _bits(dtype: str) -> int:
    return 8 if dtype == 'pred' else int(re.search(r'\d+', dtype).group())


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
