"""Joins what one kernel computes at once: a normalisation, a sum and a ReLU, after a convolution.

Networks are written layer by layer. `fuse` traces one, and computes the same with fewer readings
and writings of the activations:

  convolve(x, kernel, bias) -> ReLU
  batch_norm(x) [+ addend] [-> ReLU]                  in training
  convolve(x) -> normalize [+ addend] [-> ReLU]       in evaluation
"""

import collections
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.extend.core
from jax.ad_checkpoint import checkpoint_name

from flaxcls.ops import convolution, native, norm_kernels

Equation = jax.extend.core.JaxprEqn
_CARRIERS = ('reshape', 'name')  # What hands on its input, as an array of the same numbers.
_NORMS = {
    'flaxcls_biased_convolution': convolution.convolve_biased,
    'flaxcls_batch_norm': norm_kernels.batch_norm,
    'flaxcls_normalize_by_moments': norm_kernels.normalize_by_moments,
    'flaxcls_normalize': norm_kernels.normalize_groups,
    'flaxcls_normalize_parts': norm_kernels.normalize_parts,
}
_CAN_ADD = ('flaxcls_batch_norm', 'flaxcls_normalize')


def fuse(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function of arrays with the same results, whose operations are joined.

    Where there are no kernels it is the function itself.
    """

    @functools.wraps(function)
    def fused(*args: Any) -> Any:
        if not native.available():
            return function(*args)
        program, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        results = _evaluate(program, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return fused


class Group(NamedTuple):
    """Equations that become one.

    Attributes:
      norm: the normalisation.
      convolution: before it; None: there is none, or it stays by itself.
      addend: the variable that is added; None: there is none.
      relu: whether a ReLU is last.
      result: the variable of the last equation.
      inner: all its equations but the last, by their identity.
      made: the variables that these make, but for statistics.
      names: that its equations have for remat.
    """

    norm: Equation
    convolution: Equation | None
    addend: Any
    relu: bool
    result: Any
    inner: frozenset[int]
    made: frozenset[Any]
    names: tuple[str, ...]

    def inputs(self) -> set[Any]:
        """Returns the variables that it is computed of."""
        first = self.convolution.invars if self.convolution else []
        last = [] if self.addend is None else [self.addend]
        return {*_variables([*first, *self.norm.invars, *last])} - self.made


def find_groups(program: jax.extend.core.Jaxpr) -> dict[int, Group]:
    """Returns each group of a program by the identity of its last equation."""
    graph = _Graph(program)
    groups, taken = {}, set()
    for equation in reversed(program.eqns):  # The longest first.
        if id(equation) not in taken and (group := _find_group(graph, equation)):
            groups[id(equation)] = group
            taken |= group.inner
    return groups


class _Graph:
    """Which equation makes each variable of a program, and which see it."""

    def __init__(self, program: jax.extend.core.Jaxpr):
        self._makers = {made: equation for equation in program.eqns for made in equation.outvars}
        seen = [atom for equation in program.eqns for atom in equation.invars]
        self._uses = collections.Counter(_variables([*seen, *program.outvars]))

    def path_to(
        self, variable: Any, wanted: Callable[[Equation], bool], path: tuple[Equation, ...] = ()
    ) -> tuple[Equation, ...]:
        """Returns the equations from a variable back to one that is wanted; (): there is none.

        Nobody else sees what they make, and those between hand on their input.
        """
        equation = None if _is_literal(variable) else self._makers.get(variable)
        if equation is None or self._uses[variable] > 1 or variable is not equation.outvars[0]:
            return ()
        if wanted(equation):
            return (*path, equation)
        if equation.primitive.name not in _CARRIERS:
            return ()
        return self.path_to(equation.invars[0], wanted, (*path, equation))


def _find_group(graph: _Graph, last: Equation) -> Group | None:
    """Returns the group that ends in an equation, if there is one."""
    path, addend = _find_norm(graph, last)
    if not path:
        return None
    norm, before = path[-1], ()
    if norm.primitive.name == 'flaxcls_normalize':
        before = graph.path_to(norm.invars[0], _is_convolution)
    joined = [equation for equation in (*path, *before) if equation is not last]
    if not joined:
        return None
    return Group(
        norm=norm,
        convolution=before[-1] if before else None,
        addend=addend,
        relu=is_relu(last),
        result=last.outvars[0],
        inner=frozenset(id(equation) for equation in joined),
        made=frozenset(equation.outvars[0] for equation in joined),
        names=tuple(each.params['name'] for each in joined if each.primitive.name == 'name'),
    )


def _find_norm(graph: _Graph, last: Equation) -> tuple[tuple[Equation, ...], Any]:
    """Returns the equations from the last of a group back to its normalisation, and the addend."""
    path = (last,)
    if is_relu(last):
        path = graph.path_to(last.invars[0], lambda made: _is_norm(made) or _is_sum(made))
    if not path or _is_norm(path[-1]):
        return path, None
    if _is_sum(path[-1]):
        first, second = path[-1].invars
        for own, other in ((second, first), (first, second)):
            if norm := graph.path_to(own, _can_add):
                return (*path, *norm), other
    return (), None


def is_relu(equation: Equation) -> bool:
    """Returns whether an equation is nn.relu, whose gradient is its own and which holds a call."""
    if equation.primitive.name != 'custom_jvp_call':
        return False
    inner = equation.params['call_jaxpr'].eqns
    return len(inner) == 1 and inner[0].params.get('name') == 'relu'


def _is_norm(equation: Equation) -> bool:
    """Returns whether it is a normalisation that nothing has been joined to."""
    return equation.primitive.name in _NORMS and not equation.params['relu']


def _can_add(equation: Equation) -> bool:
    return _is_norm(equation) and equation.primitive.name in _CAN_ADD


def _is_convolution(equation: Equation) -> bool:
    return equation.primitive.name == 'flaxcls_convolution'


def _is_sum(equation: Equation) -> bool:
    """Returns whether an equation adds two arrays of one shape."""
    if equation.primitive.name != 'add':
        return False
    first, second = equation.invars
    return first.aval.shape == second.aval.shape and first.aval.dtype == second.aval.dtype


def _is_literal(atom: Any) -> bool:
    return isinstance(atom, jax.extend.core.Literal)


def _variables(atoms: Any) -> Iterator[Any]:
    return (atom for atom in atoms if not _is_literal(atom))


def _evaluate(program: jax.extend.core.ClosedJaxpr, arguments: list[Any]) -> list[Any]:
    """Returns the results of a program, its groups computed at once."""
    jaxpr = program.jaxpr
    values = dict(zip(jaxpr.constvars, program.consts, strict=True))
    values |= dict(zip(jaxpr.invars, arguments, strict=True))
    groups = find_groups(jaxpr)
    inner = set().union(*(group.inner for group in groups.values()))
    waiting = []  # A group's statistics come with its last equation, so some need them early.
    for equation in jaxpr.eqns:
        if id(equation) in inner:
            continue
        waiting.append(equation)
        for late in list(waiting):
            group = groups.get(id(late))
            needed = group.inputs() if group else _variables(late.invars)
            if all(variable in values for variable in needed):
                _compute_group(group, values) if group else _compute(late, values)
                waiting.remove(late)
    return [_read(atom, values) for atom in jaxpr.outvars]


def _named(y: jax.Array, group: Group) -> jax.Array:
    """Returns the result with the names that remat knows its equations by."""
    for name in group.names:
        y = checkpoint_name(y, name)
    return y


def _read(atom: Any, values: dict[Any, Any]) -> Any:
    return atom.val if _is_literal(atom) else values[atom]


def _compute(equation: Equation, values: dict[Any, Any]) -> None:
    params = equation.primitive.get_bind_params(equation.params)
    arguments = [_read(atom, values) for atom in equation.invars]
    results = equation.primitive.bind(*arguments, **params)
    results = results if equation.primitive.multiple_results else [results]
    values.update(zip(equation.outvars, results, strict=True))


def _compute_group(group: Group, values: dict[Any, Any]) -> None:
    norm, result = group.norm, group.result
    arrays = [None if atom in group.made else _read(atom, values) for atom in norm.invars]
    addends = [] if group.addend is None else [_read(group.addend, values)]
    if group.convolution:
        x, kernel = (_read(atom, values) for atom in group.convolution.invars)
        _, (mean,), (factor,), bias = arrays
        y = convolution.convolve_affine(
            x, kernel, factor, bias - mean * factor, *addends,
            relu=group.relu, **group.convolution.params,
        )  # fmt: skip
        values[result] = _named(y, group)
        return
    arrays += [addend.reshape(arrays[0].shape) for addend in addends]
    options = {**norm.params, 'relu': group.relu}
    y, *statistics = _NORMS[norm.primitive.name](*arrays, **options)
    values[result] = _named(y.reshape(result.aval.shape), group)
    values.update(zip(norm.outvars[1:], statistics, strict=True))
