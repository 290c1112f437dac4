"""Shows what runs have reached: a table here, and all that there is to see on one page of HTML.

  flaxcls report --workdir=runs/digits_resnet20
  flaxcls report --workdir=runs/digits_resnet20 --workdir=runs/other --out=two.html
  flaxcls report --workdir=runs/digits_resnet20 --watch=30             (while it is trained)

The page needs no other file and no network. It has what was run, the curves, the results with their
interval, the confusions, the calibration, the most confident mistakes and the most typical images
with Grad-CAM, and the scores of each class. Several runs are compared with the first, image by
image.
It is written from what is there: before the first checkpoint, or without the data, parts are left
out, and the page says why. With --watch it is rewritten whenever a run has progressed, until all
are finished, and the browser that shows it reloads it. --language=zh writes it in Chinese.
"""

import os
from collections.abc import Sequence

from flaxcls.commands.flags import add_language, add_workdirs
from flaxcls.errors import UserError
from flaxcls.system.cli import CommandParser
from flaxcls.system.translation import DEFAULT


def main(argv: Sequence[str]) -> None:
    parser = CommandParser('flaxcls report', __doc__)
    add_workdirs(parser)
    parser.add_argument('--out', help='the page; default: report.html in the first workdir')
    parser.add_argument(
        '--watch', type=float, metavar='SECONDS', help='between two looks at unfinished runs'
    )
    add_language(parser, 'en')
    flags = parser.parse_args(argv)
    if flags.watch is not None and not flags.watch > 0:
        raise UserError(f'--watch={flags.watch:g} is not a time to wait; give seconds above 0.')
    from flaxcls.reporting.report import print_summary, watch, write_report

    language = flags.language or DEFAULT
    workdirs = [os.path.expanduser(workdir) for workdir in flags.workdir]
    if flags.watch is None:
        print_summary(*write_report(workdirs, flags.out, language=language))
    else:
        watch(workdirs, flags.out, flags.watch, language)
