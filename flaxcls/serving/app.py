"""The web application: images in, the likeliest classes out."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from concurrent import futures
from typing import Any

import numpy as np
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from flaxcls.data.images import TooManyPixels, require_pixels
from flaxcls.errors import RunError
from flaxcls.inference.classifier import Classifier, UnreadableImage, pad_to_power_of_two
from flaxcls.serving.batching import Batcher
from flaxcls.serving.limits import Limits
from flaxcls.serving.metrics import Metrics
from flaxcls.serving.page import TOP_K, Page
from flaxcls.serving.request_body import Body, ErrorResponse
from flaxcls.system.threads import count_cores

_ELSEWHERE = {
    404: 'there is nothing here; POST an image to /predict, or GET /, /health or /metrics.',
    405: 'POST an image to /predict; GET /, /health and /metrics.',
}


def make_app(
    classifier: Classifier, limits: Limits | None = None, language: str | None = None
) -> Starlette:
    """Returns an ASGI application that serves the classifier.

    POST /predict takes an image as the body, or as the one file of a form, and returns
    {"predictions": [{"name": ..., "probability": ...}, ...], "model": ..., "step": ...}, the
    likeliest class first; ?top_k=3 asks for three. An error response is {"error": sentence}. GET /
    is a page to try it on, GET /health says whether it is ready, GET /metrics is for Prometheus.

    Every size of batch is compiled here, before the first request.

    Args:
      classifier: what is served.
      limits: None: the default ones.
      language: of the page, see `Page`; error messages are in English.

    Raises:
      UserError: the limits make no sense.
      RunError: the network's outputs are not finite.
    """
    limits = (limits or Limits()).require_sensible()
    server, page = Server(classifier, limits), Page(classifier, limits, language)
    server.compile_batches()
    app = Starlette(
        routes=[
            Route('/', page.respond, methods=['GET']),
            Route('/predict', server.predict, methods=['POST']),
            Route('/health', server.health, methods=['GET']),
            Route('/metrics', server.metrics, methods=['GET']),
        ],
        exception_handlers={HTTPException: _refuse, Exception: _fail},
        lifespan=server.running,
    )
    app.router.redirect_slashes = False  # A sentence instead, since curl follows no redirection.
    return app


def batch_sizes(max_batch: int) -> list[int]:
    """Returns the powers of two that batches of up to max_batch are filled up to."""
    return [1 << power for power in range((max_batch - 1).bit_length() + 1)]


class Server:
    """The endpoints, and what they share."""

    def __init__(self, classifier: Classifier, limits: Limits):
        self._classifier = classifier
        self._limits = limits
        self._under_way = 0
        self._batcher = Batcher(
            self.compute,
            max_batch=limits.max_batch,
            max_wait=limits.max_wait_ms / 1000,
            observe=lambda size: self._metrics.batch_size.observe(size),
        )
        self._metrics = Metrics(
            limits.max_batch, lambda: self._under_way, lambda: self._batcher.waiting
        )

    def compile_batches(self) -> None:
        """Compiles what `compute` needs for every size of batch."""
        side = self._classifier.side
        for size in batch_sizes(self._limits.max_batch):
            if not np.isfinite(self.compute(np.zeros((size, side, side, 3), np.uint8))).all():
                raise RunError(
                    f"the network's outputs are not finite; its training has failed by step "
                    f'{self._classifier.step}: try another --checkpoint.'
                )

    @contextlib.asynccontextmanager
    async def running(self, app: Starlette) -> AsyncIterator[None]:
        """While it runs: threads that decode, and one that computes."""
        del app
        with (
            self._batcher,
            futures.ThreadPoolExecutor(self._classifier.num_threads or count_cores()) as pool,
        ):
            self._pool = pool
            yield

    async def predict(self, request: Request) -> Response:
        """Returns the predictions for one image."""
        began, status = time.perf_counter(), 500
        body = Body(request, self._limits.max_bytes)
        self._under_way += 1
        try:
            response = await self._respond(request, body)
            status = response.status_code
        except HTTPException as error:
            response, status = ErrorResponse(error, body), error.status_code
        except ClientDisconnect:
            response, status = Response(), 499  # The client has gone.
        finally:
            self._under_way -= 1
            self._metrics.requests.labels(status).inc()
            self._metrics.seconds.observe(time.perf_counter() - began)
        return response

    async def _respond(self, request: Request, body: Body) -> Response:
        if self._under_way > self._limits.max_waiting:
            raise HTTPException(
                503,
                f'no more than {self._limits.max_waiting} may wait; come again in a second.',
                {'Retry-After': '1'},
            )
        top_k = _top_k(request)
        data = await body.read_image()
        if not data:
            raise HTTPException(400, 'the request is empty; send an image as its body.')
        loop = asyncio.get_running_loop()
        image = await loop.run_in_executor(self._pool, self._decode, data)
        probabilities = await asyncio.wrap_future(self._batcher.submit(image))
        if not np.isfinite(probabilities).all():
            raise HTTPException(500, "the network's output for this image is not finite.")
        names = self._classifier.class_names
        order = np.argsort(-probabilities, kind='stable')[:top_k]
        predictions = [
            {'name': names[label], 'probability': float(probabilities[label])} for label in order
        ]
        return JSONResponse({'predictions': predictions} | _identity(self._classifier))

    def _decode(self, data: bytes) -> np.ndarray:
        """Returns the image uint8 [S, S, 3] of a file's bytes; in a thread of the pool."""
        try:
            require_pixels(data, self._limits.max_pixels)
        except TooManyPixels:
            raise HTTPException(
                413,
                f'the image has more than {self._limits.max_pixels:,} pixels; send a smaller one.',
            ) from None
        except ValueError as error:
            raise HTTPException(415, f'{error}.') from None
        try:
            return self._classifier.preprocess(data)
        except UnreadableImage as error:
            raise HTTPException(422, f'{error.reason}.') from None
        except MemoryError:
            raise HTTPException(413, 'the image needs more memory than there is.') from None

    def compute(self, images: np.ndarray) -> np.ndarray:
        """Returns probabilities [N, C] of images uint8 [N, S, S, 3]; in the batcher's thread."""
        # All the way, since a softmax of a size that is new would be compiled as well.
        logits = self._classifier.classify(pad_to_power_of_two(images))
        return self._classifier.to_probabilities(logits)[: len(images)]

    async def health(self, request: Request) -> Response:
        """Returns what is served, and whether it is ready."""
        del request
        state = {'status': 'ready' if self._batcher.alive else 'failed'}
        about = {'classes': len(self._classifier.class_names)}
        code = 200 if self._batcher.alive else 503
        return JSONResponse(state | _identity(self._classifier) | about, code)

    async def metrics(self, request: Request) -> Response:
        """Returns the metrics in the text format of Prometheus."""
        del request
        return Response(self._metrics.render(), headers={'Content-Type': CONTENT_TYPE_LATEST})


def _identity(classifier: Classifier) -> dict[str, Any]:
    return {'model': classifier.model_name, 'step': classifier.step}


def _top_k(request: Request) -> int:
    unknown = sorted(set(request.query_params) - {'top_k'})
    if unknown:
        raise HTTPException(400, f'{unknown[0]!r} is unknown; /predict takes top_k alone.')
    text = request.query_params.get('top_k', str(TOP_K))
    if not text.isdecimal() or len(text) > 9 or int(text) < 1:
        raise HTTPException(400, 'top_k is not a positive number; give one, as /predict?top_k=3.')
    return int(text)


async def _refuse(request: Request, error: HTTPException) -> Response:
    """Responds to what no endpoint takes."""
    del request
    sentence = _ELSEWHERE.get(error.status_code, error.detail)
    return JSONResponse({'error': sentence}, error.status_code, error.headers)


async def _fail(request: Request, error: Exception) -> Response:
    """Responds after an internal error; the server logs the traceback to stderr."""
    del request, error
    return JSONResponse({'error': 'the server has failed on this request, and continues.'}, 500)
