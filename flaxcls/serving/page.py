"""The page to try the server on, in the language of whoever asks for it."""

import pathlib

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from flaxcls.inference.classifier import Classifier
from flaxcls.serving.limits import Limits
from flaxcls.system.html import create_environment
from flaxcls.system.translation import choose_language, list_languages, load_translation

TOP_K = 5
# The page asks nobody but this server, whatever a class is called.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


class Page:
    """The page in each language that may be asked for."""

    def __init__(self, classifier: Classifier, limits: Limits, language: str | None = None):
        """Renders the page.

        Args:
          classifier: what is served.
          limits: of what is taken.
          language: one of `list_languages()`; None: what the browser prefers.
        """
        self._language = language
        self._texts = {
            each: _render(classifier, limits, each)
            for each in ([language] if language else list_languages())
        }

    async def respond(self, request: Request) -> Response:
        """Returns the page."""
        headers = {'Content-Security-Policy': _POLICY}
        language = self._language
        if language is None:
            headers['Vary'] = 'Accept-Language'
            language = choose_language(
                preferences(', '.join(request.headers.getlist('Accept-Language')))
            )
        return HTMLResponse(self._texts[language], headers=headers | {'Content-Language': language})


def preferences(header: str) -> list[str]:
    """Returns the languages of an Accept-Language header, the most wanted first.

    Those with q=0 are not wanted, and what is not of the form TAG;q=QUALITY is passed over.
    """
    found = []
    for item in header.split(','):
        tag, _, quality = item.replace(' ', '').partition(';q=')
        try:
            found.append((float(quality or 1), tag))
        except ValueError:
            continue
    wanted = sorted((pair for pair in found if pair[0] > 0), key=lambda pair: -pair[0])
    return [tag for _, tag in wanted]


def _render(classifier: Classifier, limits: Limits, language: str) -> str:
    folder = pathlib.Path(__file__).parent / 'templates'
    environment = create_environment(folder, load_translation(language, 'server'))
    return environment.get_template('serve.html').render(
        model=classifier.model_name,
        step=classifier.step,
        classes=len(classifier.class_names),
        max_bytes=limits.max_bytes,
        top_k=TOP_K,
    )
