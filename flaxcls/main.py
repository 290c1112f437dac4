"""Trains or evaluates an image classifier.

  python -m flaxcls.main --config=experiments/densenet121.py             (as `flaxcls train` does)
  python -m flaxcls.main --workdir=runs/densenet121                      (resumes that run)
  python -m flaxcls.main --workdir=runs/densenet121 --mode=evaluate

The other commands are those of `flaxcls --help`.
"""

from collections.abc import Sequence

from flaxcls.commands import train
from flaxcls.commands.flags import CHECKPOINT, load_named_extensions
from flaxcls.errors import UserError
from flaxcls.system import distributed
from flaxcls.system.cli import run_command


def main(argv: Sequence[str]) -> None:
    load_named_extensions(argv)
    parser = train.make_parser('python -m flaxcls.main', __doc__)
    parser.add_argument('--mode', default='train', choices=['train', 'evaluate'])
    parser.add_argument('--checkpoint', help=f'to evaluate: {CHECKPOINT}')
    flags, overrides = parser.parse_with_overrides(argv)
    if flags.mode == 'evaluate':
        if flags.config and flags.workdir:
            raise UserError(
                f'--config={flags.config} has no effect, since --mode=evaluate takes the config '
                f'stored in {flags.workdir!r}; leave it out.'
            )
        distributed.start(flags)
        _evaluate(train.workdir_of(flags, overrides), flags.checkpoint or 'newest', overrides)
    elif flags.checkpoint:
        raise UserError(f'--checkpoint={flags.checkpoint} belongs to --mode=evaluate.')
    else:
        train.run(parser, flags, overrides)


def _evaluate(workdir: str, checkpoint: str, overrides: dict[str, str]) -> None:
    from flaxcls.training.evaluation import describe_evaluation
    from flaxcls.training.restore import evaluate_workdir

    values = evaluate_workdir(workdir, checkpoint=checkpoint, overrides=overrides)
    print(f'step {values["step"]}: {describe_evaluation(values)}')


if __name__ == '__main__':
    run_command(main)
