"""Joins what one kernel computes at once: a normalisation, a sum and a ReLU, after a convolution.

Networks are written layer by layer. `fuse` traces one, and computes the same with fewer readings
and writings of the activations:

  convolve(x, kernel, bias) -> ReLU
  batch_norm(x) [+ addend] [-> ReLU]                  in training
  convolve(x) -> normalize [+ addend] [-> ReLU]       in evaluation
"""

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
# Those that can add an array, and how many they take without it.
_WITHOUT_ADDEND = {'flaxcls_batch_norm': 3, 'flaxcls_normalize': 4}


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
    makers = {variable: equation for equation in program.eqns for variable in equation.outvars}
    users: dict[Any, list[Equation | None]] = {}
    for equation in program.eqns:
        for variable in _variables(equation.invars):
            users.setdefault(variable, []).append(equation)
    for variable in _variables(program.outvars):
        users.setdefault(variable, []).append(None)

    def carried(variable: Any, wanted: Callable[[Equation], bool]) -> list[Equation]:
        """Returns the equations from one that is wanted to the variable, if nobody else sees."""
        found = []
        while (equation := makers.get(variable)) and len(users[variable]) == 1:
            found.append(equation)
            if wanted(equation):
                return found if variable is equation.outvars[0] else []
            if equation.primitive.name not in _CARRIERS:
                break
            variable = equation.invars[0]
        return []

    def group(last: Equation) -> Group | None:
        relu, addend, path = is_relu(last), None, []
        if _is_norm(last):
            path = [last]
        elif relu or last.primitive.name == 'add':
            source = last
            if relu:
                found = carried(last.invars[0], lambda made: _is_norm(made) or _is_sum(made))
                path = found
                source = found[-1] if found else last
            if _is_sum(source):
                for own, other in ((1, 0), (0, 1)):
                    norm = carried(source.invars[own], _is_norm)
                    if norm and norm[-1].primitive.name in _WITHOUT_ADDEND:
                        addend, path = source.invars[other], [*path, *norm]
                        break
                else:
                    return None
        if not path:
            return None
        norm = path[-1]
        if norm is not last and (norm.params['relu'] or _has_addend(norm)):
            return None
        before = []
        if norm.primitive.name == 'flaxcls_normalize' and not _has_addend(norm):
            before = carried(norm.invars[0], _is_convolution)
        convolution = before[-1] if before else None
        if last is norm and convolution is None:
            return None
        joined = [equation for equation in [*path, *before] if equation is not last]
        inner = frozenset(id(equation) for equation in joined)
        outputs = frozenset(equation.outvars[0] for equation in joined)
        names = tuple(made.params['name'] for made in joined if made.primitive.name == 'name')
        return Group(norm, convolution, addend, relu, last.outvars[0], inner, outputs, names)

    groups, taken = {}, set()
    for equation in reversed(program.eqns):  # The longest first.
        if id(equation) in taken:
            continue
        if found := group(equation):
            groups[id(equation)] = found
            taken |= found.inner
    return groups


def is_relu(equation: Equation) -> bool:
    """Returns whether an equation is nn.relu, whose gradient is its own and which holds a call."""
    if equation.primitive.name != 'custom_jvp_call':
        return False
    inner = equation.params['call_jaxpr'].eqns
    return len(inner) == 1 and inner[0].params.get('name') == 'relu'


def _is_norm(equation: Equation) -> bool:
    return equation.primitive.name in _NORMS


def _is_convolution(equation: Equation) -> bool:
    return equation.primitive.name == 'flaxcls_convolution'


def _is_sum(equation: Equation) -> bool:
    """Returns whether an equation adds two arrays of one shape."""
    if equation.primitive.name != 'add':
        return False
    first, second = equation.invars
    return first.aval.shape == second.aval.shape and first.aval.dtype == second.aval.dtype


def _has_addend(norm: Equation) -> bool:
    most = _WITHOUT_ADDEND.get(norm.primitive.name)
    return most is not None and len(norm.invars) > most


def _variables(atoms: Any) -> Iterator[Any]:
    return (atom for atom in atoms if not isinstance(atom, jax.extend.core.Literal))


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
    return atom.val if isinstance(atom, jax.extend.core.Literal) else values[atom]


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
