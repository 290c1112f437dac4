"""Serves the network that a run has trained over HTTP: images in, the most probable classes out.

  flaxcls serve --workdir=runs/digits_resnet20
  curl --data-binary @image.jpg 'http://127.0.0.1:8000/predict?top_k=3'
  curl -F image=@image.jpg http://127.0.0.1:8000/predict

The response is {"predictions": [{"name": ..., "probability": ...}, ...], "model": ...,
"step": ...}, the most probable class first, or {"error": ...} with a sentence. The page at / tries
it on an image, in the language of the browser if there is a translation, or in that of --language;
/health says whether the server is ready, and /metrics has counts for Prometheus.

Images that arrive together are batched. Ctrl-C and SIGTERM end the server when every accepted
request has its response, with exit code 0; a second Ctrl-C ends it at once. There is no
authentication and no encryption: a --host that others reach belongs behind a proxy that has both.
"""

import argparse
import signal
import sys
import warnings
from collections.abc import Sequence

from flaxcls.commands.flags import add_checkpoint, add_crops, add_language, add_workdir
from flaxcls.serving.limits import Limits
from flaxcls.system.cli import CommandParser


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser('flaxcls serve', __doc__)
    add, default = parser.add_argument, Limits()
    add_workdir(parser)
    add_checkpoint(parser)
    add_crops(parser)
    add('--host', default='127.0.0.1', help='address (127.0.0.1); 0.0.0.0: all of this machine')
    add('--port', type=int, default=8000, help='port (8000); 0: one that is free')
    for name, what in (
        ('max_batch', 'images computed at once'),
        ('max_wait_ms', 'how long a batch waits for more'),
        ('max_bytes', 'of a request'),
        ('max_pixels', 'of an image'),
        ('max_waiting', 'requests in progress; the next gets a 503'),
    ):
        value = getattr(default, name)
        add(f'--{name}', type=type(value), default=value, help=f'{what} ({value:,})')
    add_language(parser, "the browser's, or en")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    flags = _parse(argv)
    values = {name: getattr(flags, name) for name in Limits._fields}
    limits = Limits(**values).require_sensible()
    from PIL import Image

    from flaxcls.inference.classifier import Classifier
    from flaxcls.serving.server import bind, require_installed, serve

    require_installed()
    # Pillow warns of images that --max_pixels allows.
    warnings.simplefilter('ignore', Image.DecompressionBombWarning)
    # Until the server has handlers of its own: nobody waits for a response yet.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with bind(flags.host, flags.port) as listener:
        classifier = Classifier.load(flags.workdir, checkpoint=flags.checkpoint, crops=flags.crops)
        serve(classifier, listener, limits, flags.language)
    print('Stopped.')
