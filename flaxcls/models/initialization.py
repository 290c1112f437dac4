"""A network's weights before training, without compiling or computing its forward pass."""

import contextlib
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from flaxcls.host_memory import garbage_collection_paused
from flaxcls.models import initializers


@garbage_collection_paused()
def abstract_variables(model: nn.Module, image_size: int) -> dict[str, Any]:
    """Returns shapes and dtypes of what `init_variables` would, with nothing computed."""
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)


@garbage_collection_paused()
def init_variables(model: nn.Module, key: jax.Array, image_size: int) -> dict[str, Any]:
    """Returns {'params': ..., 'batch_stats': ...}; the latter is empty without BatchNorm.

    The values are those of `model.init(key, images, train=False)`, which XLA takes up to a quarter
    of a minute to compile. Here `init` is traced alone, to learn what is drawn with which key.
    """
    # The initializers draw on the host.
    with _on_cpu():
        variables = _draw(model, key, image_size)
    return {'params': variables['params'], 'batch_stats': variables.get('batch_stats', {})}


class _Asked(NamedTuple):
    """What the trace of an `init` asks for, by the place among the leaves of the variables."""

    structure: Any  # Of the variables.
    drawn: dict[int, initializers.Draw]
    others: dict[int, jax.Array]  # Leaves that no initializer of ours has made.

    @property
    def keys(self) -> dict[int, jax.Array]:
        """uint32 [2] of each draw that has a key."""
        keys = {place: draw.key for place, draw in self.drawn.items() if draw.key is not None}
        return jax.tree.map(jax.random.key_data, keys)


def _draw(model: nn.Module, key: jax.Array, image_size: int) -> dict[str, Any]:
    asked: _Asked

    def keys_and_others(key: jax.Array) -> tuple[dict[int, jax.Array], dict[int, jax.Array]]:
        nonlocal asked
        asked = _ask(model, key, image_size)
        return asked.keys, asked.others

    traced, shapes = jax.make_jaxpr(keys_and_others, return_shape=True)(key)
    # Primitive by primitive: hundreds of keys are one small program, and not a large one.
    values = core.jaxpr_as_fun(_what_is_needed(traced))(key)
    keys, leaves = jax.tree.unflatten(jax.tree.structure(shapes), values)
    fills = [
        (draw.fill, np.asarray(keys.get(place, [0, 0])), draw.stand_in.shape)
        for place, draw in asked.drawn.items()
    ]
    for (place, draw), value in zip(asked.drawn.items(), initializers.draw_all(fills), strict=True):
        leaves[place] = jnp.asarray(value, draw.stand_in.dtype)
    return jax.tree.unflatten(asked.structure, [leaves[place] for place in sorted(leaves)])


def _ask(model: nn.Module, key: jax.Array, image_size: int) -> _Asked:
    images = jnp.zeros((1, image_size, image_size, 3), jnp.float32)
    with initializers.recording() as draws:
        variables = model.init(key, images, train=False)
    by_stand_in = {id(draw.stand_in): draw for draw in draws}
    leaves, structure = jax.tree.flatten(variables)
    drawn, others = {}, {}
    for place, leaf in enumerate(leaves):
        draw = by_stand_in.get(id(leaf))
        if draw is None:
            others[place] = leaf
        else:
            drawn[place] = draw
    return _Asked(structure, drawn, others)


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
