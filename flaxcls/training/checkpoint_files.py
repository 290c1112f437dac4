"""What lies in the folder of a checkpoint: read, and held against what was saved.

With each checkpoint goes a digest of every array and of the metrics. Whatever is read is held
against them, so a damaged checkpoint is never taken for a good one: the one before is read in its
place. A file that may not be read, or a disk that fails, is no damage, and ends the command.
"""

import contextlib
import errno
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from flaxcls.config.workdir import CHECKPOINTS_FOLDER
from flaxcls.errors import PEER_LOST, RunError, UserError, is_peer_lost
from flaxcls.system.digests import digest_of, digest_of_json, digest_of_tree, names_of
from flaxcls.system.library_errors import errors_alone, place_and_reason
from flaxcls.system.signals import interrupts_left_alone
from flaxcls.system.translation import Message

BEST_BY = 'val/accuracy'
_ITEM = 'default'  # Orbax's name of the folder of the arrays.
_WEIGHTS = ('params', 'batch_stats')
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
# What TensorStore says where the fault is not in the files.
_NO_DAMAGE = ('PERMISSION_DENIED', 'UNAVAILABLE', 'RESOURCE_EXHAUSTED', 'ABORTED', 'CANCELLED')
_T = TypeVar('_T')


class Damage(RunError):
    """A checkpoint that is not what was saved."""


class Saved(NamedTuple):
    """What is known of a checkpoint before its arrays are read.

    Attributes:
      step: of training, after which it was saved.
      folder: where it is.
      metrics: of the evaluation of this very state; None: there was none.
      digests: of the arrays, by name; None: an earlier version saved it, without any.
      tree: digest of their names, dtypes and shapes.
    """

    step: int
    folder: pathlib.Path
    metrics: dict[str, float] | None
    digests: dict[str, str] | None
    tree: str | None


def list_steps(folder: pathlib.Path) -> list[int]:
    """Returns the steps that have been saved in a folder of checkpoints, in their order."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def open_saved(folder: pathlib.Path, step: int) -> Saved:
    """Returns what is known of the checkpoint of a step.

    Raises:
      Damage: its files do not say so.
      RunError: they may not be read.
    """
    root = folder / str(step)
    with reading(root):
        known = json.loads((root / '_CHECKPOINT_METADATA').read_text(encoding='utf-8'))
        record = (known.get('custom_metadata') or {}).get('flaxcls')
        file = root / 'metrics' / 'metrics'
        metrics = json.loads(file.read_text(encoding='utf-8')) if file.exists() else None
        is_other = record is not None and digest_of_json(metrics) != record['metrics']
        if is_other or (metrics is not None and not isinstance(metrics[BEST_BY], int | float)):
            raise Damage(f'{str(file)!r} is not what was saved.')
        if record is None:
            return Saved(step, root, metrics, digests=None, tree=None)
        return Saved(step, root, metrics, dict(record['values']), record['tree'])


def read_state(saved: Saved, like: Any) -> Any:
    """Returns the state of a checkpoint.

    Args:
      saved: the checkpoint.
      like: the state, or its shapes, dtypes and shardings (jax.ShapeDtypeStruct), to be placed so.

    Raises:
      UserError: the saved arrays are not those of `like`.
      Damage: they are not what was saved.
      RunError: they cannot be read.
    """
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    _require_same_shapes(saved, _saved_tree(saved), target)
    with reading(saved.folder):
        reader = ocp.Checkpointer(ocp.StandardCheckpointHandler())
        state = reader.restore(saved.folder / _ITEM, args=ocp.args.StandardRestore(target))
    _verify(saved, state)
    return state


def read_weights(saved: Saved, like: Any = None) -> dict[str, Any]:
    """Returns {'params': ..., 'batch_stats': ...} of a checkpoint, and reads nothing else.

    Of a run with averaged weights, these are taken.

    Args:
      saved: the checkpoint.
      like: as for `read_state`; None: as NumPy arrays of whatever shapes were saved.

    Raises:
      UserError: the saved arrays are not those of `like`.
      Damage: they are not what was saved.
      RunError: they cannot be read, or a weight is not a finite number.
    """
    tree = _saved_tree(saved)
    averaged = bool(tree.get('ema'))
    tree = tree['ema'] if averaged else tree
    tree = {name: tree.get(name) or {} for name in _WEIGHTS}
    if like is None:
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
        restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    else:
        _require_same_shapes(saved, tree, like)
        target = like
        restore_args = ocp.checkpoint_utils.construct_restore_args(target)
    inside = (lambda tree: {'ema': tree}) if averaged else (lambda tree: tree)
    with reading(saved.folder):
        reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
        restored = reader.restore(
            saved.folder / _ITEM,
            args=ocp.args.PyTreeRestore(
                item=inside(target), restore_args=inside(restore_args), partial_restore=True
            ),
        )
    _verify(saved, restored)
    restored = restored['ema'] if averaged else restored
    weights = {name: restored.get(name) or {} for name in _WEIGHTS}
    _require_finite(saved, weights)
    return weights


def _saved_tree(saved: Saved) -> Any:
    with reading(saved.folder):
        tree = ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).metadata(saved.folder / _ITEM)
        if tree.item_metadata is None:  # Damaged, or out of reach, which `reading` tells.
            raise ValueError('it does not list its arrays')
        tree = tree.item_metadata.tree
        if saved.tree is not None and digest_of_tree(tree) != saved.tree:
            raise Damage(f'{str(saved.folder / _ITEM)!r} does not list the arrays that were saved.')
    return tree


def _verify(saved: Saved, tree: Any) -> None:
    for name, leaf in names_of(tree).items() if saved.digests is not None else ():
        if digest_of(leaf) != saved.digests.get(name):  # None: of a name that is damaged itself.
            raise Damage(f'{name} in {str(saved.folder / _ITEM)!r} is not what was saved.')


def _require_finite(saved: Saved, weights: Any) -> None:
    for name, leaf in names_of(weights).items():
        if not np.isfinite(np.asarray(leaf, np.float32)).all():
            raise RunError(
                f'{name} of the checkpoint {str(saved.folder)!r} is not finite; choose another one '
                'with --checkpoint, or train with a lower config.optimizer.learning_rate.'
            )


def _require_same_shapes(saved: Saved, tree: Any, wanted: Any) -> None:
    there, here = (
        {name: tuple(leaf.shape) for name, leaf in names_of(t).items()} for t in (tree, wanted)
    )
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            raise UserError(
                f'the checkpoint of step {saved.step} in {str(saved.folder.parent)!r} does not '
                f'belong to this network and optimizer: {name} is {there.get(name, "absent")} '
                f'there, and {here.get(name, "absent")} here.'
            )


@contextlib.contextmanager
def reading(folder: pathlib.Path) -> Iterator[None]:
    """Turns what libraries raise while a checkpoint is read into `Damage` or RunError."""
    try:
        with interrupts_left_alone(), errors_alone():
            yield
    except (UserError, RunError):
        raise
    except Exception as error:  # Orbax and TensorStore have many.
        if is_peer_lost(error):
            raise RunError(PEER_LOST) from error
        place, reason = place_and_reason(error, folder)
        told = f'{place!r} cannot be read ({reason})'
        refused = isinstance(error, OSError) and error.errno not in _GONE
        if refused or any(code in str(error) for code in _NO_DAMAGE) or _is_closed(folder):
            raise RunError(f'{told}; mend that, and start the same command again.') from error
        raise Damage(f'{told}.') from error


def _is_closed(folder: pathlib.Path) -> bool:
    """Returns whether there is something in a folder that this user may not read."""
    return any(
        not os.access(os.path.join(root, name), os.R_OK)
        for root, folders, files in os.walk(folder)
        for name in [*folders, *files]
    )


def warn_of(damage: Damage) -> None:
    """Says what is passed over, beside what a command prints for other programs."""
    print(f'Warning: {damage} This checkpoint is passed over.', file=sys.stderr, flush=True)


def read_first_whole(
    folder: pathlib.Path, name: str, read: Callable[[Saved], _T]
) -> tuple[int, _T]:
    """Returns the step and what is read of the checkpoint `name`, or of the next that is whole.

    Args:
      folder: of the checkpoints.
      name: newest; best, by validation accuracy, the later of equals; or a step.
      read: (checkpoint) -> what is wanted of it.

    Raises:
      UserError: there is no such checkpoint.
      RunError: it cannot be read, nor one in its place.
    """
    opened, damaged = [], []
    for step in reversed(list_steps(folder)):
        if name in ('newest', 'best') or name == str(step):
            try:
                opened.append(open_saved(folder, step))
            except Damage as error:
                damaged.append(error)
    if name == 'best':
        opened = [saved for saved in opened if saved.metrics is not None]
        opened.sort(key=lambda saved: (saved.metrics[BEST_BY], saved.step), reverse=True)
    if not opened and not damaged:
        steps = ', '.join(map(str, list_steps(folder)))
        there = f'it has {steps}' if steps else 'it has none yet'
        raise UserError(f'--checkpoint={name} is not in {str(folder)!r}; {there}.')
    for error in damaged:
        warn_of(error)
    for saved in opened:
        try:
            return saved.step, read(saved)
        except Damage as error:
            damaged.append(error)
            warn_of(error)
    raise RunError(f'{damaged[-1]} Put back a copy, or train in a new workdir.')


def newest_step(workdir: str | os.PathLike) -> int | None:
    """Returns the step of the newest checkpoint in a workdir, whole or not; None: there is none."""
    return max(list_steps(pathlib.Path(workdir) / CHECKPOINTS_FOLDER), default=None)


def read_run_state(workdir: str | os.PathLike, name: str, like: Any) -> tuple[int, Any]:
    """Returns the step and the state of a checkpoint of a run; arguments as `read_run_weights`."""
    return read_first_whole(find_folder(workdir), name, lambda saved: read_state(saved, like))


def read_run_weights(
    workdir: str | os.PathLike, name: str = 'newest', like: Any = None
) -> tuple[int, dict[str, Any]]:
    """Returns the step and the weights of a checkpoint of a run.

    `name` and what is raised: as for `read_first_whole`; `like`: as for `read_weights`.
    """
    folder = find_folder(workdir)
    return read_first_whole(folder, name, lambda saved: read_weights(saved, like))


def find_folder(workdir: str | os.PathLike) -> pathlib.Path:
    """Returns the folder of a run's checkpoints; raises UserError where there is none."""
    folder = pathlib.Path(workdir).expanduser().absolute() / CHECKPOINTS_FOLDER
    if not folder.is_dir():
        raise UserError(
            Message(
                'the run in {workdir!r} has not saved anything yet, or its folder checkpoints is '
                'gone; train on, or put it back.',
                workdir=str(workdir),
            )
        )
    return folder
