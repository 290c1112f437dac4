"""Trains an image classifier, or resumes a run.

  flaxcls train --config=digits_resnet20
  flaxcls train --config=densenet121 --config.batch_size=512
  flaxcls train --config=my_experiment.py
  flaxcls train --workdir=runs/digits_resnet20                  (resumes that run)

--config.KEY=VALUE changes an option of the experiment, or without one of the defaults below. The
same command resumes its run.
"""

import argparse
from collections.abc import Mapping, Sequence

from flaxcls.commands.flags import add_config, add_trust, load_named_extensions
from flaxcls.config.options import describe_options
from flaxcls.system import distributed
from flaxcls.system.cli import CommandParser


def main(argv: Sequence[str]) -> None:
    load_named_extensions(argv)
    parser = make_parser('flaxcls train', __doc__)
    run(parser, *parser.parse_with_overrides(argv))


def make_parser(prog: str, description: str) -> CommandParser:
    """Returns a parser of what a training run is made of."""
    parser = CommandParser(prog, description, epilog='options:\n' + describe_options())
    add_config(parser)
    parser.add_argument(
        '--workdir', help='where the run lives; default: runs/, named by --config and the options'
    )
    add_trust(parser)
    distributed.add_flags(parser)
    return parser


def workdir_of(flags: argparse.Namespace, overrides: Mapping[str, str]) -> str:
    """Returns where the run lives that the flags describe."""
    from flaxcls.config.files import default_workdir

    return flags.workdir or default_workdir(flags.config, overrides)


def run(parser: CommandParser, flags: argparse.Namespace, overrides: Mapping[str, str]) -> None:
    """Trains as the flags say, or prints the help where they name neither config nor run."""
    if not (flags.config or flags.workdir or overrides):
        parser.print_help()
        return
    from flaxcls.config.files import load_config

    # A mistake is reported before the imports below, which take seconds.
    config = load_config(flags.config, overrides)
    distributed.start(flags)
    from flaxcls.config.workdir import load_stored_config
    from flaxcls.training.loop import train_and_evaluate

    if flags.workdir and not flags.config:
        config = load_stored_config(flags.workdir, overrides)
    train_and_evaluate(config, workdir_of(flags, overrides))
