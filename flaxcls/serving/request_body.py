"""What a request brings after its header, read no further than is allowed."""

import asyncio
import contextlib

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

READ_SECONDS = 30.0
# A connection that is closed while the other side still sends is reset, and the
# response is lost with it. For so long, what comes is thrown away; by then most have read it.
_LINGER_SECONDS = 2.0


class Body:
    """The body of a request.

    Attributes:
      finished: whether all of it has come, or nothing will come any more.
    """

    def __init__(self, request: Request, max_bytes: int):
        self._request = request
        self._max_bytes = max_bytes
        self._count = 0
        self.finished = False

    async def read_image(self) -> bytes:
        """Returns the file that is the body, or that a form in it has.

        Raises:
          HTTPException: it is too large, comes too slowly, or is a form without just one file.
          ClientDisconnect: the other side has gone.
        """
        # What is announced need not be waited for.
        if int(self._request.headers.get('content-length', 0)) > self._max_bytes:
            raise self._too_large()
        request = Request(self._request.scope, self._receive)
        try:
            async with asyncio.timeout(READ_SECONDS):
                kind = request.headers.get('content-type', '')
                if kind.lower().startswith('multipart/form-data'):
                    return await _only_file(request)
                return await request.body()
        except TimeoutError:
            raise HTTPException(
                408, f'the image has not come within {READ_SECONDS:g} seconds; send it faster.'
            ) from None

    async def discard(self) -> None:
        """Throws away what still comes, for a short time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                while not self.finished:
                    self._note(await self._request.receive())

    async def _receive(self) -> Message:
        message = await self._request.receive()
        self._note(message)
        self._count += len(message.get('body', b''))
        if self._count > self._max_bytes:
            raise self._too_large()
        return message

    def _note(self, message: Message) -> None:
        self.finished = not message.get('more_body', False)

    def _too_large(self) -> HTTPException:
        return HTTPException(
            413, f'the request has more than {self._max_bytes:,} bytes; send a smaller image.'
        )


async def _only_file(request: Request) -> bytes:
    async with request.form() as form:
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if len(files) != 1:
            raise HTTPException(
                400,
                f'the form has {len(files)} files; send one image with each request, and requests '
                'that come together are computed together.',
            )
        return await files[0].read()


class ErrorResponse(JSONResponse):
    """A response {"error": sentence}, which may come before the request has been read."""

    def __init__(self, error: HTTPException, body: Body):
        super().__init__({'error': error.detail}, error.status_code, error.headers)
        self._unread = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._unread.finished:
            await super().__call__(scope, receive, send)
            return
        self.headers['Connection'] = 'close'
        await send(
            {
                'type': 'http.response.start',
                'status': self.status_code,
                'headers': self.raw_headers,
            }
        )
        await send({'type': 'http.response.body', 'body': self.body, 'more_body': True})
        await self._unread.discard()
        await send({'type': 'http.response.body', 'body': b''})
