"""The networks as NNX modules, which hold their variables: `create_model(..., api='nnx')`.

What computes is the Linen network itself, so both have the same weights, outputs, gradients and
statistics to the bit, and there is one network to read. Imported on first use alone: whoever stays
with Linen does not pay for NNX.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import errors, nnx

from flaxcls.errors import UserError
from flaxcls.models.init import Initialization

_KINDS = {'params': nnx.Param, 'batch_stats': nnx.BatchStat}


class NnxNetwork(nnx.Module):
    """A network that holds its variables, under the names that they have in Linen's tree.

    A layer is a dict: `network.stem['kernel']` is an `nnx.Param`, `network.bn_stem['mean']` an
    `nnx.BatchStat`. Dicts are what NNX's transformations, which walk through the module in Python
    at every call, walk through fastest.

    Attributes:
      linen: the Linen module that computes.
      deterministic: False trains: BatchNorm takes and updates statistics, dropout and stochastic
        depth draw. `train()` and `eval()` set it, here and in modules that hold this one, and
        `nnx.view(network, deterministic=True)` returns such a view.
      rngs: the stream that training draws from; None: there is none.
    """

    def __init__(
        self, linen: nn.Module, variables: Mapping[str, Any], *, rngs: nnx.Rngs | None = None
    ):
        self.linen = linen
        self.deterministic = False
        self.rngs = nnx.data(None) if rngs is None else rngs.dropout.fork()
        for name, layer in _join(variables).items():
            setattr(self, name, nnx.data(layer))

    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool | None = None,
        example_keys: jax.Array | None = None,
    ) -> jax.Array:
        """Returns float32 logits [B, num_classes] of normalised images [B, H, W, 3].

        Args:
          images: the batch.
          train: whether to train; None: `not self.deterministic`.
          example_keys: one key per example [B], which dropout and stochastic depth draw from; None:
            they draw from `self.rngs`.

        Raises:
          UserError: something is to be drawn, and there is nothing to draw from.
        """
        variables = to_linen(self)
        if train is None:
            train = not self.deterministic
        if not train:
            return self.linen.apply(variables, images, train=False)
        rngs = {} if self.rngs is None or example_keys is not None else {'dropout': self.rngs()}
        try:
            logits, updates = self.linen.apply(
                variables,
                images,
                train=True,
                example_keys=example_keys,
                rngs=rngs,
                mutable=['batch_stats'],
            )
        except errors.InvalidRngError:
            raise UserError(
                'This network drops units or branches in training: give it '
                'rngs=nnx.Rngs(seed) when it is made, or example_keys when it is called.'
            ) from None
        nnx.update(self, nnx.State(updates.get('batch_stats', {})))
        return logits

    def set_view(self, deterministic: bool | None = None) -> None:
        """Is what `nnx.view` calls."""
        if deterministic is not None:
            self.deterministic = deterministic


def create_nnx(
    model: nn.Module, initialization: Initialization, image_size: int, rngs: nnx.Rngs
) -> NnxNetwork:
    """Returns a network with initial weights: those that `init_variables` draws from a key.

    The key is `rngs.params()`. Under `nnx.eval_shape` or jit, where it has no value yet, they are
    Linen's, which are the same.

    Raises:
      UserError: `rngs` is no nnx.Rngs.
    """
    if not isinstance(rngs, nnx.Rngs):
        raise UserError(
            f"create_model(..., api='nnx') draws the initial weights from rngs={rngs!r}: "
            'give it rngs=nnx.Rngs(seed).'
        )
    key = rngs.params()
    if isinstance(key, jax.core.Tracer):
        images = jnp.zeros((1, image_size, image_size, 3), jnp.float32)
        variables = model.init(key, images, train=False)
    else:
        variables = initialization.draw(key)
    return NnxNetwork(model, variables, rngs=rngs)


def to_nnx(
    model: nn.Module, variables: Mapping[str, Any], *, rngs: nnx.Rngs | None = None
) -> NnxNetwork:
    """Returns an NNX module with the given variables, such as those of a trained run.

    Args:
      model: the Linen module, such as `Classifier.model`.
      variables: {'params': ..., 'batch_stats': ...}, such as `Classifier.variables`; the latter
        may be missing.
      rngs: what dropout and stochastic depth draw from in training; None: evaluation, and training
        without them.

    Raises:
      UserError: there are variables of another kind.
    """
    if unknown := set(variables) - set(_KINDS):
        raise UserError(
            f'to_nnx: variables of the kind {", ".join(sorted(unknown))} have no place in '
            f'the networks of flaxcls; leave {", ".join(_KINDS)} alone.'
        )
    return NnxNetwork(model, variables, rngs=rngs)


def to_linen(network: NnxNetwork) -> dict[str, Any]:
    """Returns {'params': ..., 'batch_stats': ...} for `network.linen.apply`; the latter may be {}.

    The arrays are those of the module at this moment: later steps replace, and do not change, them.
    """
    states = nnx.state(network, *_KINDS.values(), ...)
    return {kind: nnx.to_pure_dict(state) for kind, state in zip(_KINDS, states[:-1], strict=True)}


def _join(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {layer: {..., name: Variable}}, the kinds side by side."""
    flat = {
        path: _KINDS[kind](value)
        for kind, tree in variables.items()
        for path, value in nnx.traversals.flatten_mapping(tree).items()
    }
    return nnx.traversals.unflatten_mapping(flat)
