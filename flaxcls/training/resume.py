"""Which runs may resume: the same experiment, or a longer one.

The loop then takes the newest checkpoint that is whole, see `flaxcls.training.checkpoints`.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from flaxcls.config.options import keys_of
from flaxcls.errors import UserError


def require_same_run(
    changed: Mapping[str, tuple[Any, Any]], workdir: pathlib.Path, newest: int, total_steps: int
) -> None:
    """Refuses to resume another experiment's run; a longer one is allowed, with a warning.

    Args:
      changed: {option: (as stored, as wanted now)}.
      workdir: of the run that is to resume.
      newest: the step of its newest checkpoint.
      total_steps: of the run that is wanted now.
    """
    for key, (old, new) in changed.items():
        if key == 'num_epochs' and total_steps < newest:
            raise UserError(
                f'config.num_epochs={new} ends at step {total_steps}, and the run in '
                f'{str(workdir)!r} has made {newest} already; choose another --workdir.'
            )
        if key == 'num_epochs':
            print(
                f'Warning: num_epochs was {old} and is {new}; the learning rate follows the '
                'new schedule.'
            )
        elif key not in keys_of('neutral'):
            raise UserError(
                f'config.{key} is {new!r}, but the run in {str(workdir)!r} has {old!r}; choose '
                'another --workdir, or leave --config out to resume that run.'
            )
