"""Saving a run's state with Orbax: the newest checkpoints, and the best.

This is Orbax's first API. The second, `orbax.checkpoint.experimental.v1` today, becomes that of the
package with version 1.0, below which setup.cfg keeps it. Then `save_pytree` and `load_pytree` take
the place of the handlers and their arguments, and its `load_checkpointables` reads what is written
here (tried with 0.12.8). All that knows of Orbax is in this file and in `checkpoint_files`.
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
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from flaxcls.config.workdir import CHECKPOINTS_FOLDER, DAMAGED_FOLDER
from flaxcls.errors import PEER_LOST, RunError, is_peer_lost
from flaxcls.system.digests import make_digests
from flaxcls.system.distributed import on_first
from flaxcls.system.library_errors import errors_alone, place_and_reason
from flaxcls.system.signals import interrupts_left_alone
from flaxcls.training.checkpoint_files import (
    BEST_BY,
    Damage,
    list_steps,
    open_saved,
    read_first_whole,
    read_state,
    warn_of,
)

_MAKE_ROOM = 'make room, and start the same command again'


class Checkpoints:
    """The checkpoints of a workdir: written beside and renamed, so each is whole or absent.

    Saving continues in the background; `close` waits for it. Kept are the newest, the one before,
    and the one with the highest validation accuracy (the later one of equals).
    """

    def __init__(self, workdir: pathlib.Path):
        rank = lambda metrics: metrics[BEST_BY]  # noqa: E731
        best = BestN(get_metric_fn=rank, n=1, keep_checkpoints_without_metrics=False)
        self._folder = pathlib.Path(workdir).absolute() / CHECKPOINTS_FOLDER
        on_first(self._move_unreadable_away)
        with self._writing(), errors_alone():
            options = ocp.CheckpointManagerOptions(
                best_fn=rank,
                preservation_policy=AnyPreservationPolicy([LatestN(2), best]),
                cleanup_tmp_directories=True,
            )
            handler = ocp.StandardCheckpointHandler()
            self._manager = ocp.CheckpointManager(
                self._folder, options=options, item_handlers=handler
            )

    @property
    def newest_step(self) -> int | None:
        """The step of the newest checkpoint; None when there is none."""
        return self._manager.latest_step()

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def save(self, state: Any, metrics: dict[str, float] | None) -> None:
        """Starts to save; `metrics` are those of an evaluation of this very state, or None."""
        self._require_room(sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
        with self._writing():
            self._manager.save(
                int(state.step),
                args=ocp.args.StandardSave(state),
                metrics=metrics,
                custom_metadata={'flaxcls': make_digests(state, metrics)},
            )

    def restore_newest(self, like: Any) -> Any:
        """Returns the newest state that is what was saved; `like` is that of `read_state`.

        What is damaged is passed over with a warning, and moved out of the way, since the run will
        come to the same step again.

        Raises:
          UserError: the saved arrays are not those of `like`.
          RunError: no checkpoint can be read.
        """
        read = lambda saved: read_state(saved, like)  # noqa: E731
        found, state = read_first_whole(self._folder, 'newest', read)
        damaged = [step for step in list_steps(self._folder) if step > found]
        on_first(lambda: [self._move_away(step) for step in damaged])
        self._manager.reload()
        return state

    def _move_unreadable_away(self) -> None:
        """Moves checkpoints away that Orbax could not list, as long as there are others."""
        for step in list_steps(self._folder):
            try:
                open_saved(self._folder, step)
            except Damage as error:
                if len(list_steps(self._folder)) == 1:
                    raise
                warn_of(error)
                self._move_away(step)

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
                f'{str(self._folder)!r} has {free / 1e6:.2f} MB left, and a checkpoint takes '
                f'{size / 1e6:.2f} MB; {_MAKE_ROOM}.'
            )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with interrupts_left_alone():
                yield
        except Exception as error:  # Orbax and TensorStore have many for full disks.
            if is_peer_lost(error):  # All processes take part in a save.
                raise RunError(PEER_LOST) from error
            place, reason = place_and_reason(error, self._folder)
            raise RunError(f'{place!r} cannot be written ({reason}); {_MAKE_ROOM}.') from error

    def wait(self) -> None:
        """Returns when everything handed to `save` is on disk."""
        with self._writing():
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
