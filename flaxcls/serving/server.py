"""The HTTP server: its socket, its signals, its start and end."""

import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator

from flaxcls.errors import Stopped, UserError
from flaxcls.inference.classifier import Classifier
from flaxcls.serving.limits import Limits

_BACKLOG = 1024


_GRACE_SECONDS = 40  # Longer than a body may take to come, so that its sender has a response.


def bind(host: str, port: int) -> socket.socket:
    """Returns a socket that listens there; port 0: at one that is free.

    Raises:
      UserError: nothing can listen there.
    """
    if not 0 <= port <= 65535:
        raise UserError(f'--port={port} is not a port; give one of 0 to 65535.')
    listener = None
    try:
        # With the protocol by its number: asyncio looks for it before it sets TCP_NODELAY, without
        # which a response waits 40 ms for the other side to have acknowledged its header.
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
        )[0]
        listener = socket.socket(family, kind, protocol)
        if os.name == 'posix':  # Elsewhere it would let two servers share a port.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except (OSError, UnicodeError) as error:
        if listener is not None:
            listener.close()
        reason = getattr(error, 'strerror', None) or str(error)
        raise UserError(
            f'the server cannot listen at --host={host} --port={port} ({reason}); choose others, '
            'or --port=0 for a port that is free.'
        ) from None
    return listener


def serve(
    classifier: Classifier, listener: socket.socket, limits: Limits, language: str | None = None
) -> None:
    """Serves until a signal ends it.

    Args:
      classifier: what is asked.
      listener: a socket that listens.
      limits: of what is taken.
      language: of the page; None: what the browser prefers.

    Raises:
      UserError: what it needs is not installed, or the limits make no sense.
      RunError: the network's outputs are not finite.
      Stopped: by a second signal, without responses to those who wait.
    """
    server = make_server(classifier, limits, language)
    print(_describe(classifier, listener, limits), flush=True)
    # What is cut off by a second Ctrl-C is not a fault to trace.
    logging.getLogger('uvicorn.error').addFilter(lambda record: not server.force_exit)
    with _signals_do_nothing():
        server.run(sockets=[listener])
    if server.force_exit:
        raise Stopped('Stopped at once; those who waited have no response.', signal.SIGINT)


def make_server(classifier: Classifier, limits: Limits, language: str | None = None):
    """Returns the uvicorn.Server, with every batch compiled; errors as `serve`."""
    uvicorn, app = require_installed()
    sizes = app.batch_sizes(limits.max_batch)
    print(f'Compiling batches of {", ".join(map(str, sizes))} images ...', file=sys.stderr)
    config = uvicorn.Config(
        app.make_app(classifier, limits, language),
        http='h11',
        loop='asyncio',
        ws='none',
        lifespan='on',
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    return uvicorn.Server(config)


def require_installed():
    """Returns uvicorn and the app; raises UserError if a package of the extra is missing."""
    try:
        import uvicorn  # noqa: PLC0415 - an extra

        from flaxcls.serving import app as app_lib  # noqa: PLC0415 - imports the extra
    except ModuleNotFoundError as error:
        raise UserError(
            f'serving needs {error.name}, which is not installed: pip install "flaxcls[serve]"'
        ) from None
    return uvicorn, app_lib


def _describe(classifier: Classifier, listener: socket.socket, limits: Limits) -> str:
    host, port = listener.getsockname()[:2]
    address = f'http://[{host}]:{port}' if ':' in host else f'http://{host}:{port}'
    return (
        f'{address} serves {classifier.model_name} of step {classifier.step:,} with '
        f'{len(classifier.class_names):,} classes: batches of up to {limits.max_batch} images, '
        f'{limits.max_wait_ms:g} ms apart; at most {limits.max_bytes:,} bytes, '
        f'{limits.max_pixels:,} pixels, {limits.max_waiting} requests waiting.'
    )


@contextlib.contextmanager
def _signals_do_nothing() -> Iterator[None]:
    """Keeps the process alive when uvicorn, having ended well, raises the signal once more."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: None) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
