"""Our training step and that of Flax's ImageNet example, as a TPU's own compiler makes them.

  python -m benchmarks.tpu_program                          # ResNet-50, DenseNet-121, AlexNet
  python -m benchmarks.tpu_program --models=flax_example,resnet50 --remat=none --effort=-1
  python -m benchmarks.tpu_program --models=families --dtype=float32,bfloat16 --per_chip=32 \\
      --step=train,eval --effort=-1

Needs no TPU, but the extra [tpu], and minutes for each program. The bytes accessed and the FLOPs
are those that the compiler counts, for each image. Of the bytes, HBM's are those that are not in
the vector memory, where XLA puts what it has fetched early; the memory is that of a chip while the
step runs. Our
BatchNorm's groups are the images of a chip; the example's are the whole batch's, for which it has
to send sums between the chips. `benchmarks.flax_imagenet` is that example.
"""

from collections.abc import Iterator, Sequence

from benchmarks.programs import (
    EXAMPLE,
    MEMORY,
    NAMES,
    SECONDS,
    Column,
    Facts,
    Program,
    create_parser,
    list_programs,
    print_table,
    require_all,
)
from flaxcls.system.cli import run_command


def _per_image(amount: float | None, unit: float, program: Program) -> float:
    return (amount or float('nan')) / unit / program.per_chip


def _sent(facts: Facts) -> tuple[int, float]:
    """Returns the number of collectives, and their 10**6 bytes."""
    counts = facts.collectives.values()
    return sum(number for number, _ in counts), sum(size for _, size in counts) / 1e6


COLUMNS = [
    *NAMES,
    Column('MB accessed', 11, lambda p, facts: f'{_per_image(facts.traffic, 1e6, p):.1f}'),
    Column('MB of HBM', 9, lambda p, facts: f'{_per_image(facts.hbm, 1e6, p):.1f}'),
    Column('GFLOP', 6, lambda p, facts: f'{_per_image(facts.flops, 1e9, p):.2f}'),
    MEMORY,
    Column('collectives', 11, lambda p, facts: str(_sent(facts)[0])),
    Column('MB sent', 7, lambda p, facts: f'{_sent(facts)[1]:.1f}'),
    SECONDS,
]


_COMPARED = {'accessed': 'traffic', 'HBM': 'hbm', 'FLOPs': 'flops', 'memory': 'memory'}


def describe_ratios(found: dict[Program, Facts]) -> Iterator[str]:
    """Yields a line for each ResNet-50 of ours beside the example of the same dtype."""
    found = {program: facts for program, facts in found.items() if facts.error is None}
    for example, theirs in found.items():
        for program, ours in found.items():
            if example.network != EXAMPLE or not _comparable(program, example):
                continue
            parts = [
                f'{name} {getattr(ours, field) / getattr(theirs, field):.2f}'
                for name, field in _COMPARED.items()
            ]
            (few, small), (many, large) = _sent(ours), _sent(theirs)
            yield (
                f'resnet50 / {EXAMPLE}, {program.dtype}, remat {program.remat}: '
                f'{", ".join(parts)}; collectives {few} to {many}, MB sent {small:.1f} to '
                f'{large:.1f}'
            )


def _comparable(program: Program, example: Program) -> bool:
    return (program.network, program.step, program.dtype) == ('resnet50', 'train', example.dtype)


def main(argv: Sequence[str]) -> None:
    parser = create_parser(
        'benchmarks.tpu_program',
        __doc__,
        models=f'{EXAMPLE},resnet50,densenet121,alexnet',
        step='train',
        dtype='bfloat16',
        remat='none,norm,block',
        per_chip=256,
        target='tpu:v5e:2x2',
    )
    parser.add_argument(
        '--effort',
        type=float,
        default=0.0,
        help="of the compiler: 0, a run's and default, to -1, the fastest",
    )
    flags = parser.parse_args(argv)
    programs = list_programs(flags, 'tpu')
    print(f'{flags.target}, {flags.per_chip} images a chip, effort {flags.effort:g}', flush=True)
    found = print_table(programs, COLUMNS)
    for line in describe_ratios(found):
        print(line)
    require_all(found)


if __name__ == '__main__':
    run_command(main)
