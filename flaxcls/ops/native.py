"""Kernels for CPUs that XLA calls, oneDNN's and our own, where they have been built.

They are compiled from kernels/ when flaxcls is installed, if a C++ compiler and the packages of the
extra `native` are there; `define` gives an operation a kernel beside its plain form.
"""

import contextlib
import contextvars
import ctypes
import functools
import os
import pathlib
import site
import sys
import sysconfig
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.extend.core
import jaxlib
import numpy as np
from jax.interpreters import ad, batching, mlir

from flaxcls.ops.forms import use_reference

SWITCH = 'FLAXCLS_NATIVE'  # 0: no kernels, as if they had not been built.
_ENABLED = contextvars.ContextVar('enabled', default=True)
_ONEDNN = 'libdnnl.so.3'
_DTYPES = (np.dtype('float32'), jax.numpy.dtype('bfloat16'))
Shapes = tuple[jax.ShapeDtypeStruct, ...]


@functools.cache
def library() -> ctypes.CDLL | None:
    """Returns the kernels, known to XLA from then on; None: the plain forms run, see `status`."""
    return _load()[0]


def takes(x: jax.Array) -> bool:
    """Returns whether operations on x that are traced now may become kernels."""
    return x.dtype in _DTYPES and available()


def available() -> bool:
    """Returns whether what is traced now may have kernels: where JAX computes on a CPU."""
    wanted = _ENABLED.get() and not use_reference() and library() is not None
    return wanted and jax.default_backend() == 'cpu'


@contextlib.contextmanager
def disabled() -> Iterator[None]:
    """Gives what is traced within no kernels: to compare, or for another device than this one."""
    token = _ENABLED.set(False)
    try:
        yield
    finally:
        _ENABLED.reset(token)


def status() -> str:
    """Returns which form runs, and on what: a line for a person."""
    return _load()[1]


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    if os.environ.get(SWITCH) == '0':
        return None, f'off ({SWITCH}=0)'
    path = pathlib.Path(__file__).with_name('_kernels' + sysconfig.get_config_var('EXT_SUFFIX'))
    if not path.exists():
        return None, 'not built'
    folders = [pathlib.Path(sys.prefix, 'lib'), pathlib.Path(site.getuserbase(), 'lib')]
    try:
        for onednn in (folder / _ONEDNN for folder in folders):
            if onednn.exists():
                ctypes.CDLL(str(onednn))
                break
        kernels = ctypes.CDLL(str(path))
    except OSError as error:
        return None, f'not loaded ({error})'
    kernels.flaxcls_describe.restype = kernels.flaxcls_jaxlib.restype = ctypes.c_char_p
    # XLA's interface to kernels changes from one release to the next.
    if (version := kernels.flaxcls_jaxlib().decode()) != jaxlib.__version__:
        return None, f'not loaded (built for jaxlib {version}: install flaxcls again)'
    kernels.flaxcls_keep_large_blocks()
    return kernels, kernels.flaxcls_describe().decode()


def define(
    name: str,
    plain: Callable[..., Any],
    shapes: Callable[..., Shapes],
    *,
    attributes: tuple[str, ...] = (),
    supports: Callable[..., bool] = lambda *_, **__: True,
    bilinear: tuple[Callable[..., jax.Array], Callable[..., jax.Array]] | None = None,
) -> Callable[..., list[jax.Array]]:
    """Returns an operation of arrays and options: the kernel on a CPU that has it, else `plain`.

    It is a primitive of JAX, whose batching and derivatives are those of `plain`.

    Args:
      name: of the kernel, which is the symbol flaxcls_NAME.
      plain: (*arrays, **options) -> tuple of arrays; arrays of any dtype.
      shapes: (*arrays, **options) -> shapes and dtypes of what it returns.
      attributes: the options that the kernel is told; shapes tell it the others.
      supports: (*arrays, **options) -> whether the kernel takes them, asked as one is lowered.
      bilinear: of an operation that is linear in each of its two arrays, (gradient, first, second,
        **options) -> gradient of the first, and of the second. So these may be kernels as well.
    """
    primitive = jax.extend.core.Primitive(f'flaxcls_{name}')
    primitive.multiple_results = True

    def call(*arrays: jax.Array, **options: Any) -> list[jax.Array]:
        if not all(array.dtype in (*_DTYPES, np.uint8) for array in arrays) or not available():
            return list(plain(*arrays, **options))
        _register(name)
        return primitive.bind(*arrays, **options)

    def lower(context: mlir.LoweringRuleContext, *operands: Any, **options: Any) -> Any:
        if not supports(*context.avals_in, **options):
            return lower_plain(context, *operands, **options)
        told = {key: np.asarray(options[key])[()] for key in attributes}
        return jax.ffi.ffi_lowering(f'flaxcls_{name}')(context, *operands, **told)

    lower_plain = mlir.lower_fun(plain, multiple_results=True)
    mlir.register_lowering(primitive, lower_plain)
    mlir.register_lowering(primitive, lower, platform='cpu')
    primitive.def_abstract_eval(
        lambda *arrays, **options: [_abstract(result) for result in shapes(*arrays, **options)]
    )
    _give_rules(primitive, plain)
    if bilinear:
        ad.primitive_jvps[primitive] = functools.partial(_differentiate_bilinear, call)
        ad.primitive_transposes[primitive] = functools.partial(_transpose_bilinear, bilinear)
    else:
        ad.primitive_jvps[primitive] = functools.partial(_differentiate, plain)
    return call


def compose(name: str, function: Callable[..., Any]) -> Callable[..., list[jax.Array]]:
    """Returns a function of arrays and options as one primitive, which `fusion` sees as a whole.

    Its derivatives and batching are those of `function`, which is made of other operations.
    """
    primitive = jax.extend.core.Primitive(f'flaxcls_{name}')
    primitive.multiple_results = True
    _give_rules(primitive, function)
    ad.primitive_jvps[primitive] = functools.partial(_differentiate, function)
    mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=True))

    def shapes(*arrays: Any, **options: Any) -> list[Any]:
        arrays = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays]
        return list(jax.eval_shape(functools.partial(function, **options), *arrays))

    primitive.def_abstract_eval(
        lambda *arrays, **options: [_abstract(result) for result in shapes(*arrays, **options)]
    )
    return primitive.bind


def _abstract(result: jax.ShapeDtypeStruct) -> jax.core.ShapedArray:
    return jax.core.ShapedArray(result.shape, result.dtype)


def _give_rules(primitive: jax.extend.core.Primitive, function: Callable[..., Any]) -> None:
    """Gives a primitive the batching of a function, and a compiled form outside of jit."""

    def batch(arrays: Any, axes: Any, **options: Any) -> Any:
        results = jax.vmap(functools.partial(function, **options), axes)(*arrays)
        return list(results), (0,) * len(results)

    @functools.partial(jax.jit, static_argnames='options')
    def run(*arrays: jax.Array, options: tuple[tuple[str, Any], ...]) -> list[jax.Array]:
        return primitive.bind(*arrays, **dict(options))

    batching.primitive_batchers[primitive] = batch
    primitive.def_impl(lambda *arrays, **options: run(*arrays, options=tuple(options.items())))


def _differentiate(plain, primals, tangents, **options):
    tangents = tuple(ad.instantiate_zeros(tangent) for tangent in tangents)
    return jax.jvp(lambda *arrays: list(plain(*arrays, **options)), tuple(primals), tangents)


def _differentiate_bilinear(call, primals, tangents, **options):
    (first, second), (of_first, of_second) = primals, tangents
    terms = []
    if not isinstance(of_first, ad.Zero):
        terms += call(of_first, second, **options)
    if not isinstance(of_second, ad.Zero):
        terms += call(first, of_second, **options)
    return call(first, second, **options), [sum(terms[1:], start=terms[0])]


def _transpose_bilinear(bilinear, cotangents, first, second, **options):
    (gradient,) = cotangents
    of_first, of_second = bilinear
    if isinstance(gradient, ad.Zero):
        return [None, None]
    if ad.is_undefined_primal(first):
        return [of_first(gradient, first.aval, second, **options), None]
    return [None, of_second(gradient, first, second.aval, **options)]


@functools.cache
def _register(name: str) -> None:
    """Makes a kernel known to XLA, under its name."""
    symbol = getattr(library(), f'flaxcls_{name}')
    jax.ffi.register_ffi_target(f'flaxcls_{name}', jax.ffi.pycapsule(symbol), platform='cpu')
