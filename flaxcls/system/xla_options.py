"""XLA options other than the defaults, where measurement says so."""

import functools

import jax

# Of the parts of a program that XLA's CPU backend may give to the YNNPACK library: all but
# convolutions, of which it computes those with fewer than 128 channels on a single core, and
# elementwise ones.
_YNN = 'xla_cpu_experimental_ynn_fusion_type'
_DOTS_AND_SUMS = 'LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE'


def compiler_options(model_name: str, platform: str) -> dict[str, str]:
    """Returns the options for the steps of a network.

    So on two cores a gradient of AlexNet takes a fifth less time, of ResNet-18 a sixth, of
    ResNet-50 6 %, of ResNet-20 two fifths. DenseNet's convolutions, of few outputs, take longer.

    Args:
      model_name: a row of flaxcls.models.MODELS.
      platform: 'cpu', 'gpu' or 'tpu'.
    """
    if platform != 'cpu' or model_name.startswith('densenet'):
        return {}
    options = {_YNN: _DOTS_AND_SUMS}
    return options if _are_known(**options) else {}


@functools.cache
def _are_known(**options: str) -> bool:
    """Returns whether this version of XLA has the options; they do not promise it."""
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
