"""Flags that several commands have."""

import argparse

from flaxcls.config.options import OPTIONS

CHECKPOINT = 'newest (the default), best, or a step'


def add_workdir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--workdir', required=True, help='of the run')


def add_workdirs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--workdir', action='append', required=True, help='of a run; repeatable')


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--checkpoint', default='newest', help=CHECKPOINT)


def add_crops(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--crops',
        choices=OPTIONS['data.eval_crops'].choices,
        help='TTA crops whose predictions are averaged; default: as the run evaluates',
    )


def add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--config',
        help='an experiment of `flaxcls configs`, or a Python file with get_config(); '
        'NAME:VARIANT and FILE:VARIANT choose a variant',
    )
