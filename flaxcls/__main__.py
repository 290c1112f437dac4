"""`flaxcls COMMAND ...`, as well as `python -m flaxcls COMMAND ...`: the door to every command."""

import importlib
import shlex
from collections.abc import Iterable, Sequence

import flaxcls
from flaxcls.errors import UserError
from flaxcls.system.cli import run_command
from flaxcls.system.text import did_you_mean

# Name -> module in flaxcls.commands, which is imported when it is asked for, and what it does.
COMMANDS = {
    'train': ('train', 'train a network, or resume a run'),
    'evaluate': ('evaluate', 'accuracy, calibration, scores of each class; or compare runs'),
    'predict': ('predict', 'classify image files'),
    'explain': ('explain', 'draw Grad-CAM, occlusion, feature maps and the like'),
    'report': ('report', 'write one HTML page about a run, or several'),
    'export': ('export', 'write StableHLO, ONNX, TFLite or a web page, with a certificate'),
    'serve': ('serve', 'classify images over HTTP'),
    'plan': ('plan', 'steps, FLOPs, memory and time of a run, before it starts'),
    'benchmark': ('benchmark', 'measure training step, loop and evaluation on these devices'),
    'sweep': ('sweep', 'run an ablation over named axes and seeds'),
    'data show': ('data_show', 'draw what a network sees in training'),
    'data check': ('data_check', 'find unreadable files and duplicates in a data set'),
    'data prepare': ('data_prepare', 'prepare a TFDS data set, which is then read without TFDS'),
    'weights import': ('weights_import', 'make a run of weights from torchvision or timm'),
    'weights export': ('weights_export', 'write the weights of a run for torchvision or timm'),
    'models': ('models', 'list the networks, or the layers of one'),
    'configs': ('configs', 'list the experiments and sweeps that come with flaxcls'),
    'precise-bn': ('precise_bn', 'recompute BatchNorm statistics over the training set'),
}
# What a command was called before there was one door.
_RENAMED = {
    'main': 'train',
    'check_data': 'data check',
    'prepare_data': 'data prepare',
    'show_data': 'data show',
    'torch_weights': 'weights',
    'recalibrate': 'precise-bn',
    'precise_bn': 'precise-bn',
}


def main(argv: Sequence[str]) -> None:
    """Runs the command that the first word names, or the first two, with the other arguments."""
    if not argv or argv[0] in ('-h', '--help', 'help'):
        print(_help('', COMMANDS))
        return
    if argv[0] == '--version':
        print(f'flaxcls {flaxcls.__version__}')
        return
    for count in (1, 2):
        name = ' '.join(argv[:count])
        if name in COMMANDS:
            module = importlib.import_module(f'flaxcls.commands.{COMMANDS[name][0]}')
            module.main(argv[count:])
            return
    group = [name for name in COMMANDS if name.startswith(f'{argv[0]} ')]
    if not group:
        raise UserError(_unknown(argv))
    if argv[1:] and argv[1] not in ('-h', '--help', 'help'):
        name = ' '.join(argv[:2])
        raise UserError(
            f'there is no command {name!r}{did_you_mean(name, group)}; '
            f'flaxcls {argv[0]} --help lists them.'
        )
    print(_help(f'{argv[0]} ', group))


def _help(group: str, names: Iterable[str]) -> str:
    lines = [f'usage: flaxcls {group}COMMAND [--help] ...', '', 'commands:']
    lines += [f'  {name:<15} {COMMANDS[name][1]}' for name in names]
    lines += ['', f'flaxcls {group}COMMAND --help lists the arguments of a command.']
    return '\n'.join(lines)


def _unknown(argv: Sequence[str]) -> str:
    """Returns why there is no such command, and what to write instead."""
    word = argv[0]
    if word.startswith('-'):
        return f'name a command before {word}, such as train; flaxcls --help lists them.'
    new = _RENAMED.get(word.replace('-', '_'))
    if new:
        return f'{word!r} has a new name:  {shlex.join(["flaxcls", *new.split(), *argv[1:]])}'
    remedy = did_you_mean(word, list(COMMANDS))
    return f'there is no command {word!r}{remedy}; flaxcls --help lists them.'


def run() -> None:
    """Runs the command line of this process."""
    run_command(main)


if __name__ == '__main__':
    run()
