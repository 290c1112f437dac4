"""Serves the network that a run has trained over HTTP: images in, the likeliest classes out.

  python -m flaxcls.commands.serve --workdir=runs/digits_resnet20
  curl --data-binary @image.jpg 'http://127.0.0.1:8000/predict?top_k=3'
  curl -F image=@image.jpg http://127.0.0.1:8000/predict

The answer is {"predictions": [{"name": ..., "probability": ...}, ...], "model": ..., "step": ...},
the likeliest class first, or {"error": ...} with a sentence. A browser at / tries it on an image;
/health tells whether the server is ready, and /metrics has counts for Prometheus.

Images that come together are computed together. Ctrl-C and SIGTERM end the server when all that it
has accepted is answered, with exit code 0; a second Ctrl-C ends it at once. It asks nobody who they
are and encrypts nothing: a --host that others reach belongs behind a proxy that does.
"""

import argparse
import signal
import sys
import warnings
from collections.abc import Sequence

from PIL import Image

from flaxcls.inference.classifier import CROPS, Classifier
from flaxcls.serving.limits import Limits
from flaxcls.serving.server import _require_installed, bind, serve
from flaxcls.system.cli import CommandParser, run_command


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser('flaxcls.commands.serve', __doc__)
    add, default = parser.add_argument, Limits()
    add('--workdir', required=True, help='of the run')
    add('--checkpoint', default='newest', help='newest (the default), best or step')
    add('--crops', choices=CROPS, help='views to average (as the run does)')
    add('--host', default='127.0.0.1', help='address (127.0.0.1); 0.0.0.0: all of this machine')
    add('--port', type=int, default=8000, help='port (8000); 0: one that is free')
    for name, what in (
        ('max_batch', 'images computed at once'),
        ('max_wait_ms', 'how long a batch waits for more'),
        ('max_bytes', 'of a request'),
        ('max_pixels', 'of an image'),
        ('max_waiting', 'requests under way; the next gets a 503'),
    ):
        value = getattr(default, name)
        add(f'--{name}', type=type(value), default=value, help=f'{what} ({value:,})')
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    flags = _parse(argv)
    values = {name: getattr(flags, name) for name in Limits._fields}
    limits = Limits(**values).require_sensible()
    _require_installed()
    # Pillow warns of images that --max_pixels allows.
    warnings.simplefilter('ignore', Image.DecompressionBombWarning)
    # Until the server has handlers of its own: nobody waits for an answer yet.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with bind(flags.host, flags.port) as listener:
        classifier = Classifier.load(flags.workdir, checkpoint=flags.checkpoint, crops=flags.crops)
        serve(classifier, listener, limits)
    print('Stopped.')


if __name__ == '__main__':
    run_command(main)
