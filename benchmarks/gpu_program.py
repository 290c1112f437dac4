"""The steps of every kind of network, compiled for an H100 on a machine without one.

  python -m benchmarks.gpu_program                                   # training, all that there is
  python -m benchmarks.gpu_program --models=resnet50 --remat=none --step=train,eval

Needs the extra [cuda]. Kernels are counted: cuDNN's, cuBLAS's, Triton's, and those that XLA has
fused. They cannot be timed where there is no device, so each library's default is taken, and the
memory is without the workspace of cuDNN; XLA counts neither FLOPs nor traffic for a GPU.
"""

from collections.abc import Sequence

from benchmarks.programs import (
    DTYPES,
    MEMORY,
    NAMES,
    REMATS,
    SECONDS,
    Column,
    Facts,
    create_parser,
    list_programs,
    print_table,
    require_all,
)
from flaxcls.system.cli import run_command

_KINDS = ('cuDNN', 'cuBLAS', 'Triton', 'fused')


def _others(facts: Facts) -> str:
    rest = {kind: number for kind, number in facts.kernels.items() if kind not in _KINDS}
    return ', '.join(f'{number} {kind}' for kind, number in sorted(rest.items())) or '-'


COLUMNS = [
    *NAMES,
    MEMORY,
    *(Column(k, 6, lambda _, facts, k=k: str(facts.kernels.get(k, 0))) for k in _KINDS),
    SECONDS,
    Column('other calls', 11, lambda _, facts: _others(facts)),
]


def main(argv: Sequence[str]) -> None:
    parser = create_parser(
        'benchmarks.gpu_program',
        __doc__,
        models='families',
        step='train',
        dtype=','.join(DTYPES),
        remat=','.join(REMATS),
        per_chip=256,
        target='gpu:h100',
    )
    flags = parser.parse_args(argv)
    programs = list_programs(flags, 'gpu')
    print(f'{flags.target}, {flags.per_chip} images a device', flush=True)
    require_all(print_table(programs, COLUMNS))


if __name__ == '__main__':
    run_command(main)
