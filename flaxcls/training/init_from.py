"""Initial weights from another run: config.init_from."""

import pathlib
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

from flaxcls.config.workdir import load_stored_config
from flaxcls.errors import UserError
from flaxcls.training.checkpoint_files import read_run_weights


def take_weights(variables: dict[str, Any], workdir: str) -> dict[str, Any]:
    """Returns the newest weights of the run in `workdir`, in the places of `variables`.

    A classifier of another number of classes stays as it is in `variables`, with a note.

    Raises:
      UserError: there is no such run, or it is another network's.
    """
    workdir = pathlib.Path(workdir).expanduser()
    load_stored_config(workdir)  # A workdir without a run is refused as such.
    _, saved = read_run_weights(workdir)
    ours = flatten_dict({name: variables[name] for name in ('params', 'batch_stats')})
    theirs = flatten_dict(saved)
    other_head = False
    for path in sorted(ours.keys() | theirs.keys()):
        shapes = [getattr(tree.get(path), 'shape', 'absent') for tree in (ours, theirs)]
        if shapes[0] == shapes[1]:
            ours[path] = theirs[path]
        elif path[1] == 'head' and 'absent' not in shapes:
            other_head = True
        else:
            raise UserError(
                f'config.init_from={str(workdir)!r} is another network: {"/".join(path[1:])} is '
                f'{shapes[1]} there, and {shapes[0]} here.'
            )
    note = '; its classifier has other classes, and a new one is trained' if other_head else ''
    print(f'Initial weights from {str(workdir)!r}{note}.')
    return {'params': {}, 'batch_stats': {}} | unflatten_dict(ours)
