"""Compiles one program for a TPU or GPU that need not be there, and prints the results as JSON.

`benchmarks.programs` runs it as a process: XLA's compilers end theirs where a check of them fails.
"""

import collections
import json
import math
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import flax_imagenet
from benchmarks.programs import EXAMPLE, Facts, Program
from flaxcls.config.files import load_config
from flaxcls.errors import UserError
from flaxcls.models.registry import MODELS
from flaxcls.ops import native
from flaxcls.planning.compiled import abstract_inputs, collectives, compile_train_step
from flaxcls.planning.hardware import is_tpu, open_hardware
from flaxcls.system.cli import run_command
from flaxcls.training import parallel, steps
from flaxcls.training.setup import Setup, build_setup

_CUSTOM_CALL = re.compile(r' custom-call\(.*custom_call_target="([^"]+)"')
_FUSION = re.compile(r' fusion\(.*kind=(\w+)')
_FUSION_KIND = re.compile(r'"kind":"(\w+\$?\w*)"')
_INSTRUCTION = re.compile(r'^ +(?:ROOT )?%([\w.\-]+) = (.*?) ([\w\-]+)\((.*?)\)', re.MULTILINE)
_ARRAY = re.compile(r'(pred|[a-z]+\d+\w*)\[([\d,]*)\](\{[^}]*\})?')
_NAME = re.compile(r'%([\w.\-]+)')
_MOVES = {'copy-start', 'slice-start'}
_NO_WORK = {'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast'}
_LIBRARIES = {'__cudnn$': 'cuDNN', '__cublas$': 'cuBLAS', '__triton': 'Triton'}


def compile_here(program: Program) -> Facts:
    """Returns the properties of the program, compiled in this process.

    Raises:
      UserError: there is no such target, or its compiler is not installed.
    """
    devices = open_hardware(program.target).devices
    began = time.perf_counter()
    try:
        with native.disabled():  # Whose FLOPs XLA does not count.
            compiled = _compile(program, devices)
    except UserError:
        raise
    except Exception as error:  # Whatever a compiler or the tracing of a network comes upon.
        return Facts(error=_first_line(error))
    seconds = time.perf_counter() - began
    hlo, memory = compiled.as_text(), compiled.memory_analysis()
    costs = compiled.cost_analysis() or {}
    return Facts(
        seconds=seconds,
        memory=memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes,
        flops=costs.get('flops'),
        traffic=costs.get('bytes accessed'),
        hbm=hbm_bytes(hlo) if is_tpu(program.target) else 0.0,
        collectives=collectives(hlo),
        kernels=count_kernels(hlo),
    )


def _first_line(error: Exception) -> str:
    """Returns what went wrong, and of what does not fit, by how much."""
    lines = str(error).splitlines() or ['']
    used = [
        line.strip() for line in lines[1:] if 'RESOURCE_EXHAUSTED' in lines[0] and 'Used' in line
    ]
    return ' '.join([f'{type(error).__name__}: {lines[0]}', *used[:1]])


def _compile(program: Program, devices: Sequence[Any]) -> Any:
    options = None
    if is_tpu(program.target):
        options = {'exec_time_optimization_effort': program.effort}
    if program.network == EXAMPLE:
        batch_size = program.per_chip * len(devices)
        lowered = flax_imagenet.lower_train_step(devices, batch_size, program.dtype)
        return lowered.compile(options)
    setup = _prepare(program, devices)
    if program.step == 'train':
        return compile_train_step(setup, options)
    return compile_eval_step(setup, options)


def _prepare(program: Program, devices: Sequence[Any]) -> Setup:
    variant, batch_size = MODELS[program.network], program.per_chip * len(devices)
    options = {
        'model.name': program.network, 'model.num_classes': variant.num_classes,
        'model.dtype': program.dtype, 'model.remat': program.remat, 'batch_size': batch_size,
        'data.source': f'synthetic:{max(10, 2 * batch_size)}',
        'batch_norm.group_size': program.per_chip,
    }  # fmt: skip
    return build_setup(load_config(None, options), devices=devices)


def compile_eval_step(setup: Setup, compiler_options: dict[str, Any] | None = None) -> Any:
    """Returns the evaluation step of `setup`, compiled for its layout with nothing computed."""
    rows = (setup.batch_size,)
    size = setup.eval_crop.size
    split = NamedSharding(setup.layout.mesh, PartitionSpec(parallel.AXIS))
    batch = {
        'image': jax.ShapeDtypeStruct((*rows, size, size, 3), 'uint8', sharding=split),
        'label': jax.ShapeDtypeStruct(rows, 'int32', sharding=split),
        'mask': jax.ShapeDtypeStruct(rows, 'bool', sharding=split),
    }
    step = parallel.parallelize_eval_step(
        steps.make_eval_step(setup.classify, top_k=setup.top_k), setup.layout
    )
    state, _ = abstract_inputs(setup)
    return step.lower(state.eval_variables, batch).compile(compiler_options)


def hbm_bytes(hlo: str) -> int:
    """Returns the bytes of a TPU's program that are read from and written to its main memory.

    Of each instruction these are its operands and results, but for those that lie in the vector
    memory, which XLA writes S(1) into their layout. What is copied from one memory to the other
    counts once; an operand of which only a part is read counts whole.
    """
    entry = hlo[hlo.index('ENTRY') :]
    sizes, total = {}, 0
    for name, result, kind, arguments in _INSTRUCTION.findall(entry):
        arrays = [_size(*array) for array in _ARRAY.findall(result)]
        sizes[name] = sum(main for main, _ in arrays)
        if kind in _MOVES:  # The results are where it goes to, where it comes from, and a token.
            total += min(sum(array) for array in arrays[:2])
        elif kind not in _NO_WORK and not kind.endswith('-done'):
            total += sizes[name] + sum(sizes.get(name, 0) for name in _NAME.findall(arguments))
    return total


def _size(dtype: str, shape: str, layout: str) -> tuple[int, int]:
    """Returns the bytes of an array in main memory, and in vector memory."""
    bits = 8 if dtype == 'pred' else int(re.search(r'\d+', dtype).group())
    size = bits * math.prod(int(n) for n in shape.split(',') if n) // 8
    return (0, size) if 'S(1)' in layout else (size, 0)


def count_kernels(hlo: str) -> dict[str, int]:
    """Returns the kernels of a program compiled for a GPU: kind -> number.

    Those of a library are called by its name, others than these by the call's, and what XLA has
    fused into kernels of its own is fused.
    """
    return dict(collections.Counter(_kinds(hlo)))


def _kinds(hlo: str) -> Iterator[str]:
    for line in hlo.splitlines():
        if call := _CUSTOM_CALL.search(line):
            yield _library(call[1]) or call[1]
        elif _FUSION.search(line):
            kind = _FUSION_KIND.search(line)
            yield (kind and _library(kind[1])) or 'fused'


def _library(name: str) -> str | None:
    return next((library for start, library in _LIBRARIES.items() if name.startswith(start)), None)


def main(argv: Sequence[str]) -> None:
    # Programs from a cache would take no time.
    jax.config.update('jax_enable_compilation_cache', False)
    print(json.dumps(compile_here(Program(*json.loads(argv[0])))._asdict()))


if __name__ == '__main__':
    run_command(main)
