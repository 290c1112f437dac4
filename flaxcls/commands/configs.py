"""Lists the experiments and sweeps that come with flaxcls.

  flaxcls configs
  flaxcls train --config=resnet50
  flaxcls train --config=resnet_strikes_back:a3
  flaxcls sweep --sweep=shortcuts --dry_run

A file of your own works as well: --config=FILE.py, --sweep=FILE.py.
"""

from collections.abc import Sequence

from flaxcls.system.cli import CommandParser


def main(argv: Sequence[str]) -> None:
    CommandParser('flaxcls configs', __doc__).parse_args(argv)
    from flaxcls.config.files import list_experiments

    print('--config=default: the defaults of all options, as flaxcls train --help lists them.\n')
    for kind, title in (('config', 'experiments'), ('sweep', 'sweeps')):
        print(f'{title}, for --{kind}=NAME:')
        for name, line, variants in list_experiments(kind):
            print(f'  {name:<26} {line}')
            if variants:
                print(f'  {"":<26} Variants: {", ".join(f"{name}:{each}" for each in variants)}')
        print()
    print('A file of your own works as well: --config=FILE.py, --sweep=FILE.py.')
