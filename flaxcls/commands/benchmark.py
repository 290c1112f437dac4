"""Measures what a run does on the devices here: its steps, its loop, its compiler, its memory.

  flaxcls benchmark --config=digits_resnet20
  flaxcls benchmark --config=resnet50 --config.data.source=synthetic:512
  flaxcls benchmark --config=resnet50 --steps=50 --json=resnet50.json

The second needs no data set: its images are noise, to be cut and augmented as the config says, but
not read or decoded. Timed, in rounds that alternate within one process, are
  step     the training step, on a batch that lies on the devices already;
  loop     the training loop as a run has it, with the reading of its data and its records, but
           without evaluations and checkpoints;
  forward  the evaluation step, on a batch that lies on the devices already.
The median of the rounds counts; in brackets is their middle half. A round begins with steps that
are not timed, while the loop's buffers fill. Nothing is written but --json. In a notebook:
flaxcls.planning.timing.benchmark(config).
"""

import json
import sys
from collections.abc import Sequence

from flaxcls.commands.flags import add_config
from flaxcls.config.options import describe_options
from flaxcls.system.cli import CommandParser


def main(argv: Sequence[str]) -> None:
    parser = CommandParser('flaxcls benchmark', __doc__, epilog='options:\n' + describe_options())
    add_config(parser)
    parser.add_argument('--steps', type=int, help='of a round; default: a second, 4 steps at least')
    parser.add_argument('--rounds', type=int, help='default: 20, or 5 at least if steps take long')
    parser.add_argument('--json', help='file for all that is measured')
    flags, overrides = parser.parse_with_overrides(argv)
    from flaxcls.config.files import load_config
    from flaxcls.system.files import require_place, write_atomically

    config = load_config(flags.config, overrides)
    path = require_place(flags.json) if flags.json else None
    # After the checks above, since these take seconds.
    import tqdm

    from flaxcls.planning.results import describe_results
    from flaxcls.planning.timing import benchmark

    with tqdm.tqdm(unit=' rounds', disable=not sys.stderr.isatty()) as bar:
        found = benchmark(config, steps=flags.steps, rounds=flags.rounds, on_round=bar.update)
    for line in describe_results(found):
        print(line)
    if path:
        write_atomically(path, json.dumps(found.to_json(), indent=1) + '\n')
        print(f'wrote {flags.json}')
