"""A network's weights before training, without compiling or computing its forward pass."""

import contextlib
import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from flaxcls.host_memory import garbage_collection_paused
from flaxcls.models import initializers


@dataclasses.dataclass(frozen=True)
class Initialization:
    """A network's `init`, traced once for all that is asked of it."""

    abstract: dict[str, Any]  # The shapes and dtypes of the variables.
    _fills: dict[int, initializers.Fill]  # By the place among the leaves.
    _program: core.ClosedJaxpr  # A key -> those of fills, and the leaves that have none.
    _outputs: Any  # The structure of what the program returns.

    @garbage_collection_paused()
    def draw(self, key: jax.Array) -> dict[str, Any]:
        """Returns {'params': ..., 'batch_stats': ...}; the latter is empty without BatchNorm.

        The values are those of `model.init(key, images, train=False)`, which XLA takes up to a
        quarter of a minute to compile.
        """
        if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):  # Of jax.random.PRNGKey.
            key = jax.random.wrap_key_data(key)
        # The initializers draw on the host.
        with _on_cpu():
            variables = self._draw(key)
        return {'params': variables['params'], 'batch_stats': variables.get('batch_stats', {})}

    def _draw(self, key: jax.Array) -> dict[str, Any]:
        # Primitive by primitive: hundreds of keys are one small program, and not a large one.
        values = core.jaxpr_as_fun(self._program)(key)
        keys, leaves = jax.tree.unflatten(self._outputs, values)
        abstract, structure = jax.tree.flatten(self.abstract)
        fills = [
            (fill, np.asarray(keys.get(place, [0, 0])), abstract[place].shape)
            for place, fill in self._fills.items()
        ]
        for place, value in zip(self._fills, initializers.draw_all(fills), strict=True):
            leaves[place] = jnp.asarray(value, abstract[place].dtype)
        return jax.tree.unflatten(structure, [leaves[place] for place in sorted(leaves)])


@garbage_collection_paused()
def trace_initialization(model: nn.Module, image_size: int) -> Initialization:
    """Returns the `init` of a network for images of this side, with nothing computed."""
    draws: dict[int, initializers.Draw] = {}

    def init(key: jax.Array) -> tuple[Any, dict[int, jax.Array], dict[int, jax.Array]]:
        images = jnp.zeros((1, image_size, image_size, 3), jnp.float32)
        with initializers.recording() as asked:
            variables = model.init(key, images, train=False)
        by_stand_in = {id(draw.stand_in): draw for draw in asked}
        leaves = dict(enumerate(jax.tree.leaves(variables)))
        draws.update({p: by_stand_in[id(x)] for p, x in leaves.items() if id(x) in by_stand_in})
        keys = {place: draw.key for place, draw in draws.items() if draw.key is not None}
        others = {place: leaf for place, leaf in leaves.items() if place not in draws}
        return variables, jax.tree.map(jax.random.key_data, keys), others

    key = jax.eval_shape(jax.random.key, 0)  # A real one would take the devices.
    traced, (abstract, *outputs) = jax.make_jaxpr(init, return_shape=True)(key)
    results = traced.jaxpr.outvars[len(jax.tree.leaves(abstract)) :]
    program = _what_is_needed(traced.replace(jaxpr=traced.jaxpr.replace(outvars=results)))
    fills = {place: draw.fill for place, draw in draws.items()}
    return Initialization(abstract, fills, program, jax.tree.structure(outputs))


def abstract_variables(model: nn.Module, image_size: int) -> dict[str, Any]:
    """Returns shapes and dtypes of what `init_variables` would, with nothing computed."""
    return trace_initialization(model, image_size).abstract


def init_variables(model: nn.Module, key: jax.Array, image_size: int) -> dict[str, Any]:
    """Returns a network's variables before training; see `Initialization.draw`."""
    return trace_initialization(model, image_size).draw(key)


def _what_is_needed(traced: core.ClosedJaxpr) -> core.ClosedJaxpr:
    """Leaves out the forward pass, and all else that no result depends on."""
    jaxpr = traced.jaxpr
    variables = lambda atoms: {atom for atom in atoms if isinstance(atom, core.Var)}  # noqa: E731
    needed, kept = variables(jaxpr.outvars), []
    for equation in reversed(jaxpr.eqns):
        if needed & variables(equation.outvars):
            needed |= variables(equation.invars)
            kept.append(equation)
    return traced.replace(jaxpr=jaxpr.replace(eqns=kept[::-1]))


def _on_cpu() -> contextlib.AbstractContextManager:
    try:
        return jax.default_device(jax.local_devices(backend='cpu')[0])
    except RuntimeError:  # JAX_PLATFORMS=cuda or tpu leaves no CPU to compute on.
        return contextlib.nullcontext()
