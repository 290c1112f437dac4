"""Saving and restoring a run's state with Orbax: the newest checkpoint, and the best.

This is Orbax's first API. The second, `orbax.checkpoint.experimental.v1` today, becomes that of the
package with version 1.0, below which setup.cfg keeps it. Then `save_pytree` and `load_pytree` take
the place of the handlers and their arguments, and its `load_checkpointables` reads what is written
here (tried with 0.12.8). All that knows of Orbax is in this file.
"""

import contextlib
import hashlib
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from flaxcls.config.workdir import CHECKPOINTS_FOLDER, DAMAGED_FOLDER
from flaxcls.errors import PEER_LOST, RunError, UserError, is_peer_lost
from flaxcls.system.distributed import on_first
from flaxcls.system.signals import interrupts_left_alone

BEST_BY = 'val/accuracy'
_RESTORE = 'put back a copy, or train in a new workdir'
_MAKE_ROOM = 'make room, and start the same command again'


@contextlib.contextmanager
def _errors_alone() -> Iterator[None]:
    """Keeps the warnings of libraries from notebooks, as commands do all the time."""
    before = logging.get_verbosity()
    logging.set_verbosity(min(before, logging.ERROR))
    try:
        yield
    finally:
        logging.set_verbosity(before)


class Checkpoints:
    """The checkpoints of a workdir: written beside and renamed, so each is whole or absent.

    Saving continues in the background; `close` waits for it. Kept are the newest, the one before,
    and the one with the highest validation accuracy (the later one of equals).
    """

    def __init__(self, workdir: pathlib.Path, *, read_only: bool = False):
        rank = lambda metrics: metrics[BEST_BY]  # noqa: E731
        best = BestN(get_metric_fn=rank, n=1, keep_checkpoints_without_metrics=False)
        self._folder = pathlib.Path(workdir).absolute() / CHECKPOINTS_FOLDER
        if read_only and not self._folder.is_dir():
            raise UserError(
                f'the run in {str(workdir)!r} has not saved anything yet, or its folder '
                'checkpoints is gone; train on, or put it back.'
            )
        # Orbax warns that what is opened to be read cannot be written.
        with self._access('read', _RESTORE), _errors_alone():
            options = ocp.CheckpointManagerOptions(
                best_fn=rank,
                preservation_policy=AnyPreservationPolicy([LatestN(2), best]),
                cleanup_tmp_directories=not read_only,
                create=not read_only,
                read_only=read_only,
            )
            handler = ocp.StandardCheckpointHandler()
            self._manager = ocp.CheckpointManager(
                self._folder, options=options, item_handlers=handler
            )

    @property
    def newest_step(self) -> int | None:
        """The step of the newest checkpoint; None when there is none."""
        return self._manager.latest_step()

    @property
    def best_step(self) -> int | None:
        """The step of the checkpoint with the highest validation accuracy, if any has one."""
        return self._manager.best_step()

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def find(self, name: str) -> int:
        """Returns the step of the checkpoint `name`: newest, best, or the step itself.

        Raises:
          UserError: there is no such checkpoint.
        """
        named = {'newest': self.newest_step, 'best': self.best_step}
        steps = {str(step): step for step in sorted(self._manager.all_steps())}
        step = named[name] if name in named else steps.get(name)
        if step is None:
            there = f'it has {", ".join(steps)}' if steps else 'it has none yet'
            raise UserError(f'--checkpoint={name} is not in {str(self._folder)!r}; {there}.')
        return step

    def save(self, state: Any, metrics: dict[str, float] | None) -> None:
        """Starts to save; `metrics` are those of an evaluation of this very state, or None."""
        self._require_room(sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
        with self._access('written', _MAKE_ROOM):
            self._manager.save(int(state.step), args=ocp.args.StandardSave(state), metrics=metrics)

    def restore(self, step: int, like: Any) -> Any:
        """Returns the state saved at `step`.

        Args:
          step: training step of a saved checkpoint.
          like: the state, or its shapes, dtypes and shardings (jax.ShapeDtypeStruct), to be placed
            so.

        Raises:
          UserError: the saved arrays are not those of `like`.
          RunError: the checkpoint cannot be read.
        """
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        self._require_same_shapes(step, self._saved_tree(step), target)
        with self._access('read', _RESTORE):
            return self._manager.restore(step, args=ocp.args.StandardRestore(target))

    def restore_weights(self, step: int, like: Any = None) -> dict[str, Any]:
        """Returns {'params': ..., 'batch_stats': ...} saved at `step`, and reads nothing else.

        Of a run with averaged weights, these are taken.

        Args:
          step: training step of a saved checkpoint.
          like: as for `restore`; None: as NumPy arrays of whatever shapes were saved.

        Raises:
          UserError: the saved arrays are not those of `like`.
          RunError: the checkpoint cannot be read.
        """
        saved = self._saved_tree(step)
        averaged = bool(saved.get('ema'))
        saved = saved['ema'] if averaged else saved
        names = ('params', 'batch_stats')
        saved = {name: saved.get(name) or {} for name in names}
        if like is None:
            target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), saved)
            restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
        else:
            self._require_same_shapes(step, saved, like)
            target = like
            restore_args = ocp.checkpoint_utils.construct_restore_args(target)
        inside = (lambda tree: {'ema': tree}) if averaged else (lambda tree: tree)
        with self._access('read', _RESTORE):
            reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
            restored = reader.restore(
                self._folder / str(step) / 'default',
                args=ocp.args.PyTreeRestore(
                    item=inside(target), restore_args=inside(restore_args), partial_restore=True
                ),
            )
        restored = restored['ema'] if averaged else restored
        return {name: restored.get(name) or {} for name in names}

    def _saved_tree(self, step: int) -> Any:
        with self._access('read', _RESTORE):
            return self._manager.item_metadata(step).tree

    def _require_same_shapes(self, step: int, saved: Any, wanted: Any) -> None:
        saved, wanted = _shapes(saved), _shapes(wanted)
        for name in sorted(saved.keys() | wanted.keys()):
            if saved.get(name) != wanted.get(name):
                raise UserError(
                    f'the checkpoint of step {step} in {str(self._folder)!r} does not belong to '
                    f'this network and optimizer: {name} is {saved.get(name, "absent")} there, '
                    f'and {wanted.get(name, "absent")} here.'
                )

    def restore_newest(self, like: Any) -> Any:
        """Returns the newest state that can be read; `like` is that of `restore`.

        What cannot be read is passed over with a warning, and moved out of the way, since the run
        will come to the same step again.

        Raises:
          UserError: the saved arrays are not those of `like`.
          RunError: no checkpoint can be read.
        """
        while True:
            step = self.newest_step
            try:
                return self.restore(step, like)
            except RunError as error:
                if len(self._manager.all_steps()) == 1:
                    raise
                print(f'Warning: {error} It is passed over, for the checkpoint before.')
                on_first(lambda step=step: self._move_away(step))
                self._manager.reload()

    def _move_away(self, step: int) -> None:
        aside = self._folder.with_name(DAMAGED_FOLDER)
        aside.mkdir(exist_ok=True)
        target = aside / str(step)
        shutil.rmtree(target, ignore_errors=True)
        (self._folder / str(step)).rename(target)

    def _require_room(self, size: int) -> None:
        # Reported now in one sentence, rather than by the threads that write, each in its own way.
        free = shutil.disk_usage(self._folder).free
        if free < size:
            raise RunError(
                f'{str(self._folder)!r} has {free / 1e6:.0f} MB left, and a checkpoint takes '
                f'{size / 1e6:.0f} MB; {_MAKE_ROOM}.'
            )

    @contextlib.contextmanager
    def _access(self, verb: str, remedy: str) -> Iterator[None]:
        try:
            with interrupts_left_alone():
                yield
        except Exception as error:  # Orbax and TensorStore have many for damage and full disks.
            if is_peer_lost(error):  # All processes take part in a save.
                raise RunError(PEER_LOST) from error
            first_line = str(error).strip().split('\n')[0].partition(' [tensorstore_spec')[0]
            raise RunError(
                f'{str(self._folder)!r} cannot be {verb} ({first_line}); {remedy}.'
            ) from error

    def wait(self) -> None:
        """Returns when everything handed to `save` is on disk."""
        with self._access('written', _MAKE_ROOM):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for what is being saved, and lets go of the folder."""
        self.wait()
        self._manager.close()


def fingerprint(state: Any) -> str:
    """Returns the sha256 (hex) of all arrays of a state, with their names, types and shapes."""
    digest = hashlib.sha256()
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    for path, leaf in leaves:
        array = np.asarray(leaf)
        digest.update(f'{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n'.encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator='.'): tuple(leaf.shape)
        for path, leaf in leaves
    }
