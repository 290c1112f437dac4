"""What the compilers of TPUs and GPUs make of a step, on a machine that has neither.

`benchmarks.tpu_program` and `benchmarks.gpu_program` are the commands. A row of their tables is a
program: a network, its training or evaluation step, a dtype, and what the backward pass recomputes.
A compiler may end the process that it runs in, so each program is compiled in one of its own; one
that fails becomes a row with the reason, and the table continues.
"""

import argparse
import itertools
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from flaxcls.errors import RunError, UserError
from flaxcls.planning.hardware import prepare_environment
from flaxcls.system.cli import CommandParser
from flaxcls.system.text import did_you_mean

EXAMPLE = 'flax_example'
# One of each kind of block, stem, head and image size.
FAMILIES = (
    'alexnet', 'alexnet_2012', 'alexnet_bn', 'vgg16_bn', 'resnet18', 'resnet50', 'resnet50_v2',
    'resnet50_d', 'resnext50_32x4d', 'resnet20', 'densenet121', 'densenet_40_12',
)  # fmt: skip
STEPS, DTYPES, REMATS = ('train', 'eval'), ('float32', 'bfloat16'), ('none', 'norm', 'block')


class Program(NamedTuple):
    """What is compiled.

    Attributes:
      network: a row of flaxcls.models.MODELS, at its paper's image size; or EXAMPLE.
      step: train or eval.
      dtype: that layers compute in; parameters are float32.
      remat: what the backward pass recomputes: none, norm or block.
      per_chip: images of each device, which are a group of BatchNorm's in ours.
      target: as for `flaxcls.planning.hardware.open_hardware`.
      effort: of a TPU's compiler, see `flaxcls.planning.estimate.compile_plan`.
    """

    network: str
    step: str = 'train'
    dtype: str = 'bfloat16'
    remat: str = 'none'
    per_chip: int = 256
    target: str | None = None
    effort: float = 0.0


class Facts(NamedTuple):
    """Properties of a compiled program on one device, or why there is none.

    Attributes:
      seconds: that tracing and compiling took.
      memory: bytes; arguments, results that take the place of none, temporaries and code.
      flops: of a step; None where the compiler does not count them.
      traffic: bytes that a step accesses, in whatever memory of the chip; None likewise.
      collectives: kind -> (number, bytes), of what is sent between devices.
      kernels: kind -> number, see `benchmarks.compile_program`.
      hbm: bytes of `traffic` in a TPU's main memory alone.
      error: the first line of what went wrong; None: nothing.
    """

    seconds: float = 0.0
    memory: int = 0
    flops: float | None = None
    traffic: float | None = None
    collectives: dict[str, tuple[int, int]] = {}
    kernels: dict[str, int] = {}
    hbm: float = 0.0
    error: str | None = None


class Column(NamedTuple):
    title: str
    width: int
    value: Callable[[Program, Facts], str]


NAMES = [
    Column('network', 16, lambda program, facts: program.network),
    Column('step', 6, lambda program, facts: program.step),
    Column('dtype', 9, lambda program, facts: program.dtype),
    Column('remat', 6, lambda program, facts: program.remat if program.step == 'train' else '-'),
]
MEMORY = Column('GiB a chip', 10, lambda program, facts: f'{facts.memory / 2**30:.2f}')
SECONDS = Column('compiled, s', 11, lambda program, facts: f'{facts.seconds:.0f}')


def create_parser(module: str, description: str, **defaults: Any) -> CommandParser:
    """Returns the parser of the flags that both commands have, with these defaults."""
    parser = CommandParser(f'python -m {module}', description)
    parser.add_argument(
        '--models',
        help=f'of flaxcls.models.MODELS, {EXAMPLE}, or families: one of each kind (%(default)s)',
    )
    parser.add_argument('--step', help=f'of {", ".join(STEPS)} (%(default)s)')
    parser.add_argument('--dtype', help=f'of {", ".join(DTYPES)} (%(default)s)')
    parser.add_argument('--remat', help=f'of {", ".join(REMATS)} (%(default)s)')
    parser.add_argument('--per_chip', type=int, help='images of each device (%(default)s)')
    parser.add_argument('--target', help='as in `flaxcls plan` (%(default)s)')
    parser.set_defaults(**defaults)
    return parser


def list_programs(flags: argparse.Namespace, platform: str) -> list[Program]:
    """Returns the programs that the flags ask for, and readies the environment for compiling them.

    Args:
      flags: of `create_parser`, and for a TPU --effort.
      platform: tpu or gpu, which the target has to be.

    Raises:
      UserError: a flag cannot be.
    """
    if not flags.target.startswith(f'{platform}:'):
        raise UserError(f'--target={flags.target} is not a {platform}:...; choose one of these.')
    if flags.per_chip < 1:
        raise UserError(f'--per_chip={flags.per_chip} must be positive.')
    effort = getattr(flags, 'effort', 0.0)
    if not -1 <= effort <= 0:
        raise UserError(f'--effort={effort:g} must lie between -1 and 0.')
    prepare_environment(flags.target)  # Before JAX is imported, here and where programs compile.
    from flaxcls.models.registry import MODELS

    words = _choices('models', flags.models, [*MODELS, EXAMPLE, 'families'])
    networks = [name for word in words for name in (FAMILIES if word == 'families' else [word])]
    kinds = _choices('step', flags.step, STEPS)
    dtypes = _choices('dtype', flags.dtype, DTYPES)
    remats = _choices('remat', flags.remat, REMATS)
    programs = [
        Program(network, step, dtype, remat, flags.per_chip, flags.target, effort)
        for network, step, dtype in itertools.product(networks, kinds, dtypes)
        # The example recomputes nothing, and its evaluation adds nothing to ours.
        if (network, step) != (EXAMPLE, 'eval')
        for remat in (remats if network != EXAMPLE and step == 'train' else REMATS[:1])
    ]
    if not programs:
        raise UserError(f'--models={EXAMPLE} has no --step=eval; choose --step=train.')
    return programs


def _choices(flag: str, text: str, known: Sequence[str]) -> list[str]:
    words = list(dict.fromkeys(text.split(',')))
    for word in words:
        if word not in known:
            remedy = did_you_mean(word, known) or f'; choose from {", ".join(known)}'
            raise UserError(f'--{flag}={word} is unknown{remedy}.')
    return words


def print_table(programs: Sequence[Program], columns: Sequence[Column]) -> dict[Program, Facts]:
    """Compiles one program after another, prints the row of each, and returns their properties.

    Raises:
      UserError: nothing can be compiled for the target.
    """
    print(_row([column.title for column in columns], columns), flush=True)
    found = {}
    for program in programs:
        facts = found[program] = compile_apart(program)
        print(describe_row(program, facts, columns), flush=True)
    return found


def describe_row(program: Program, facts: Facts, columns: Sequence[Column]) -> str:
    """Returns a line of the table; of a program that failed, its names and the reason."""
    if facts.error is not None:
        names = _row([column.value(program, facts) for column in NAMES], NAMES)
        return f'{names.ljust(sum(c.width + 2 for c in NAMES))}FAILED: {facts.error}'
    return _row([column.value(program, facts) for column in columns], columns)


def _row(cells: Sequence[str], columns: Sequence[Column]) -> str:
    names = len(NAMES)
    padded = [
        cell.ljust(column.width) if index < names else cell.rjust(column.width)
        for index, (cell, column) in enumerate(zip(cells, columns, strict=True))
    ]
    return '  '.join(padded).rstrip()


def require_all(found: dict[Program, Facts]) -> None:
    """Raises RunError if a program failed."""
    failed = sum(facts.error is not None for facts in found.values())
    if failed:
        raise RunError(f'{failed} of {len(found)} programs did not compile; their rows say why.')


def compile_apart(program: Program) -> Facts:
    """Returns the properties of the program, compiled in a process of its own.

    Raises:
      UserError: nothing can be compiled for the target.
    """
    command = [sys.executable, '-m', 'benchmarks.compile_program', json.dumps(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == UserError.exit_code:
        raise UserError(done.stderr.strip().splitlines()[-1].removeprefix('error: '))
    if done.returncode:
        return Facts(error=last_words(done.stderr, done.returncode))
    return Facts(**json.loads(done.stdout.splitlines()[-1]))


def last_words(stderr: str, code: int) -> str:
    """Returns why a process ended with an exit code, or with minus the number of a signal."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    fatal = [line for line in lines if re.match(r'F\d{4} ', line)]  # As XLA's checks write it.
    how = signal.Signals(-code).name if code < 0 else f'exit code {code}'
    return ': '.join([how, *(fatal[:1] or lines[-1:])])
