"""Networks in the forms that every compiler and converter knows.

Some layers are computed in other ways than the plain one where XLA runs these faster, or with
gradients of their own; see `convolution` and `pooling`. What is exported needs neither.
"""

import contextlib
import contextvars
from collections.abc import Iterator

_PLAIN = contextvars.ContextVar('plain', default=False)


def use_reference() -> bool:
    """Returns whether layers that are traced now take the reference ops."""
    return _PLAIN.get()


@contextlib.contextmanager
def reference() -> Iterator[None]:
    """Gives layers that are traced within one native operation each, without a gradient's own."""
    token = _PLAIN.set(True)
    try:
        yield
    finally:
        _PLAIN.reset(token)
