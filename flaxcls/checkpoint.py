"""Saving and restoring a run's state with Orbax: the newest checkpoint, and the best."""

import hashlib
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from flaxcls.errors import RunError, UserError
from flaxcls.train_state import TrainState

BEST_BY = 'val/accuracy'


class Checkpoints:
    """The checkpoints of a workdir: written beside and renamed, so each is whole or absent.

    Saving goes on in the background; `close` waits for it. Kept are the newest, and the one with
    the highest validation accuracy (the later one of equals).
    """

    def __init__(self, workdir: pathlib.Path, *, read_only: bool = False):
        rank = lambda metrics: metrics[BEST_BY]  # noqa: E731
        best = BestN(get_metric_fn=rank, n=1, keep_checkpoints_without_metrics=False)
        self._folder = pathlib.Path(workdir).absolute() / 'checkpoints'
        options = ocp.CheckpointManagerOptions(
            best_fn=rank,
            preservation_policy=AnyPreservationPolicy([LatestN(1), best]),
            cleanup_tmp_directories=not read_only,
            create=not read_only,
            read_only=read_only,
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    @property
    def newest_step(self) -> int | None:
        """The step of the newest checkpoint; None when there is none."""
        return self._manager.latest_step()

    @property
    def best_step(self) -> int | None:
        """The step of the checkpoint with the highest validation accuracy, if any has one."""
        return self._manager.best_step()

    def save(self, state: TrainState, metrics: dict[str, float] | None) -> None:
        """Starts to save; `metrics` are those of an evaluation of this very state, or None."""
        self._manager.save(int(state.step), args=ocp.args.StandardSave(state), metrics=metrics)

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Returns the state saved at `step`, placed as `like` is.

        Raises:
          UserError: the saved arrays are not those of `like`.
          RunError: the checkpoint cannot be read.
        """
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            return self._manager.restore(step, args=ocp.args.StandardRestore(target))
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f'the checkpoint of step {step} in {str(self._folder)!r} does not belong to this '
                f'network and optimizer ({_first_line(error)}).'
            ) from error
        except OSError as error:
            raise RunError(
                f'the checkpoint of step {step} in {str(self._folder)!r} cannot be read '
                f'({_first_line(error)}).'
            ) from error

    def wait(self) -> None:
        """Returns when everything handed to `save` is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for what is being saved, and lets go of the folder."""
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


def _first_line(error: Exception) -> str:
    return str(error).strip().split('\n')[0][:200]
