"""Flags that several commands have."""

import argparse
import os
from collections.abc import Sequence

from flaxcls.config.extensions import TRUST
from flaxcls.config.options import OPTIONS
from flaxcls.system.translation import list_languages

CHECKPOINT = 'newest (the default), best, or a step'


def add_workdir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--workdir', required=True, help='of the run')
    add_trust(parser)


def add_workdirs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--workdir', action='append', required=True, help='of a run; repeatable')
    add_trust(parser)


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Adds the flags by which a user takes what a run did not begin with, or did not write."""
    parser.add_argument(
        '--accept_data_changes',
        action=_Accept,
        nargs=0,
        help='go on though the data has changed; what was trained on stays out of validation',
    )
    parser.add_argument(
        '--trust_extensions',
        action=_Trust,
        nargs=0,
        help="run the Python code of a run's extensions, though you have not named it before",
    )


class _Trust(argparse.Action):
    """Trusts by a variable of the environment, so that processes started from here do as well."""

    def __call__(self, *_):
        os.environ[TRUST] = '1'


class _Accept(argparse.Action):
    """Accepts by a variable of the environment, as `_Trust` does."""

    def __call__(self, *_):
        os.environ['FLAXCLS_ACCEPT_DATA_CHANGES'] = '1'


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--checkpoint', default='newest', help=CHECKPOINT)


def add_crops(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--crops',
        choices=OPTIONS['data.eval_crops'].choices,
        help='TTA crops whose predictions are averaged; default: as the run evaluates',
    )


def add_language(parser: argparse.ArgumentParser, default: str) -> None:
    """Adds --language, which is None where it is not given; `default` is for --help."""
    parser.add_argument(
        '--language', choices=list_languages(), help=f'of the page; default: {default}'
    )


def load_named_extensions(argv: Sequence[str]) -> None:
    """Has --help list the options of the extensions that a command line names."""
    if not {'-h', '--help'} & set(argv):
        return
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument('--config')
    parser.add_argument('--config.extensions', dest='extensions')
    flags, _ = parser.parse_known_args(argv)
    if flags.config or flags.extensions:
        from flaxcls.config.files import load_config

        load_config(flags.config, {'extensions': flags.extensions} if flags.extensions else {})


def add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--config',
        help='an experiment of `flaxcls configs`, or a Python file with get_config(); '
        'NAME:VARIANT and FILE:VARIANT choose a variant',
    )
