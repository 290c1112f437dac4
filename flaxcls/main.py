"""Trains or evaluates an image classifier.

  python -m flaxcls.main --config=experiments/digits_resnet20.py
  python -m flaxcls.main --config=experiments/densenet121.py --config.batch_size=512
  python -m flaxcls.main --workdir=runs/digits_resnet20                  (goes on with that run)
  python -m flaxcls.main --workdir=runs/digits_resnet20 --mode=evaluate

Without --config and --workdir, the defaults below are run. --config.KEY=VALUE changes an option.
"""

from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from flaxcls.config.files import default_workdir, load_config
from flaxcls.config.options import describe_options
from flaxcls.errors import UserError
from flaxcls.system import distributed
from flaxcls.system.cli import CommandParser, parse_overrides, run_command
from flaxcls.system.host_memory import keep_freed_memory

_FLAGS = (
    *('--config', '--workdir', '--mode', '--checkpoint'),
    *('--coordinator', '--num_processes', '--process_id'),
)


def main(argv: Sequence[str]) -> None:
    parser = CommandParser('flaxcls.main', __doc__, epilog='options:\n' + describe_options())
    parser.add_argument(
        '--config', help='Python file with get_config(), or FILE:VARIANT; see experiments/'
    )
    parser.add_argument(
        '--workdir', help='where the run lives; default: runs/, named by --config and the options'
    )
    parser.add_argument('--mode', default='train', choices=['train', 'evaluate'])
    parser.add_argument('--checkpoint', help='to evaluate: newest (the default), best or a step')
    distributed.add_flags(parser)
    flags, rest = parser.parse_known_args(argv)
    overrides = parse_overrides(rest, _FLAGS)
    workdir = flags.workdir or default_workdir(flags.config, overrides)
    if flags.mode == 'evaluate':
        if flags.config and flags.workdir:
            raise UserError(
                f'--config={flags.config} is not read, since --mode=evaluate takes the config '
                f'that {workdir!r} has stored; leave it out.'
            )
        distributed.start(flags)
        _evaluate(workdir, flags.checkpoint or 'newest', overrides)
    elif flags.checkpoint:
        raise UserError(f'--checkpoint={flags.checkpoint} belongs to --mode=evaluate.')
    else:
        # Checked before the imports below, which take seconds.
        config = load_config(flags.config, overrides)
        distributed.start(flags)
        _train(config, workdir, overrides, resume=bool(flags.workdir and flags.config is None))


def _train(config: ConfigDict, workdir: str, overrides: Mapping[str, str], *, resume: bool) -> None:
    from flaxcls.training.loop import train_and_evaluate  # noqa: PLC0415
    from flaxcls.training.workdir import load_stored_config  # noqa: PLC0415

    train_and_evaluate(load_stored_config(workdir, overrides) if resume else config, workdir)


def _evaluate(workdir: str, checkpoint: str, overrides: Mapping[str, str]) -> None:
    from flaxcls.training.evaluation import describe_evaluation  # noqa: PLC0415
    from flaxcls.training.restore import evaluate_workdir  # noqa: PLC0415

    values = evaluate_workdir(workdir, checkpoint=checkpoint, overrides=overrides)
    print(f'step {values["step"]}: {describe_evaluation(values)}')


if __name__ == '__main__':
    keep_freed_memory()
    run_command(main)
