"""Runs of several processes: how they find one another, and what happens when one of them dies.

Under srun, mpirun and on TPU pods they find one another by themselves. Anywhere else, each needs
three flags:

  flaxcls train ... --coordinator=HOST:PORT --num_processes=2 --process_id=0
  flaxcls train ... --coordinator=HOST:PORT --num_processes=2 --process_id=1

They have to see the same files: the workdir, and the data. The first one prints and writes.
"""

import argparse
import ctypes
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable

from flaxcls.errors import PEER_LOST, RunError, UserError

# Seconds: a process that is silent for so long is taken for dead, and the others end.
HEARTBEAT_TIMEOUT = 30
_START_TIMEOUT = 120
_SHUTDOWN_TIMEOUT = 5  # One that has failed waits so long for the others, and then ends them.
_SUPERVISED = 'FLAXCLS_SUPERVISED'
# What the native threads of JAX say of their connections, of trouble with them, and before they
# abort the process.
_SOURCES = r'[\d:.]+ +\d+ (preemption_sync|coordination_|client\.h|distributed)'
_CONNECTIONS = re.compile(rf'\[Gloo\]|I\d{{4}} {_SOURCES}')
_TROUBLE = re.compile(rf'[WEF]\d{{4}} {_SOURCES}|Additional GRPC error|:UNKNOWN:')
_FATAL = re.compile(r'F\d{4} [\d:.]+ +\d+ ')


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags by which processes find one another."""
    group = parser.add_argument_group('several processes (srun, mpirun and TPU pods need no flags)')
    group.add_argument('--coordinator', metavar='HOST:PORT', help='where the first process listens')
    group.add_argument('--num_processes', type=int, help='how many there are')
    group.add_argument('--process_id', type=int, help='which of them this is, from 0')


def start(flags: argparse.Namespace) -> None:
    """Connects this process to the others, if it has any; before anything else asks for devices.

    With others, the process first becomes the supervisor of a child that does the work, and
    never returns from here.

    Raises:
      UserError: the flags do not fit one another.
      RunError: the others do not come.
    """
    given = (flags.coordinator, flags.num_processes, flags.process_id)
    if any(value is not None for value in given):
        _require_all(*given)
    elif not has_peers(os.environ):
        return
    if _SUPERVISED not in os.environ:
        sys.exit(_supervise())
    _connect(*given)


def _require_all(coordinator: str | None, count: int | None, index: int | None) -> None:
    if coordinator is None or count is None or index is None or ':' not in coordinator:
        raise UserError(
            'several processes need --coordinator=HOST:PORT, --num_processes and --process_id, '
            f'and they are {coordinator}, {count} and {index}.'
        )
    if not 0 <= index < count:
        raise UserError(
            f'--process_id={index} must be at least 0 and below --num_processes={count}.'
        )


def has_peers(environment: dict[str, str]) -> bool:
    """Returns whether a launcher that JAX knows has started several processes."""
    counts = ('SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE')
    hosts = environment.get('TPU_WORKER_HOSTNAMES', '')
    return any(environment.get(name, '1') != '1' for name in counts) or ',' in hosts


def _supervise() -> int:
    """Runs this very command as a child, and returns the exit code.

    JAX aborts a process whose neighbours have died, in its native threads, with pages of trace.
    Only from outside can this become one sentence.
    """
    child = subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:]],
        env=os.environ | {_SUPERVISED: '1'},
        stderr=subprocess.PIPE,
        text=True,
        errors='backslashreplace',
        preexec_fn=lambda: end_with_parent(signal.SIGKILL),
    )
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, _: child.send_signal(number))
    return retell(child.stderr, child.wait)


def retell(lines: Iterable[str], wait: Callable[[], int]) -> int:
    """Prints what a child says, without the trace of its connections; returns the exit code.

    Args:
      lines: the child's, of its standard error.
      wait: returns the code with which it ended, or minus the signal that ended it.
    """
    printed, dying, troubled, held = '', False, False, []
    for line in lines:
        dying = dying or bool(_FATAL.match(line))
        troubled = troubled or bool(_TROUBLE.match(line))
        if printed or dying or _TROUBLE.match(line) or _CONNECTIONS.match(line):
            continue  # What comes after the sentence of an error, or the fatal line, is trace.
        if line.startswith('error: '):
            printed = line
        if troubled and not printed:  # This may be more of the trace, in lines of its own.
            held.append(line)
            continue
        print(line, end='', file=sys.stderr, flush=True)
    code = wait()
    if code == -signal.SIGABRT and not printed:  # It is not this one that has failed.
        printed = f'error: {PEER_LOST}'
        print(printed, file=sys.stderr)
    if PEER_LOST not in printed:
        print(*held, sep='', end='', file=sys.stderr, flush=True)
    if code == -signal.SIGABRT:
        return 1
    return code if code >= 0 else 128 - code


def end_with_parent(number: signal.Signals) -> None:
    """Lets the kernel send this process a signal when its parent dies; on Linux alone."""
    if sys.platform == 'linux':
        set_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_death_signal, number)


def _connect(coordinator: str | None, count: int | None, index: int | None) -> None:
    import jax  # noqa: PLC0415 - takes a second, and the checks above need none

    # It would take SIGTERM for itself.
    jax.config.update('jax_enable_preemption_service', False)
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            initialization_timeout=_START_TIMEOUT,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
            shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().split('\n')[0]
        raise RunError(
            f'the processes of this run have not found one another within {_START_TIMEOUT} s '
            f'({reason}); start all of them, with the same --coordinator.'
        ) from None
    if jax.process_index():
        sys.stdout = open(os.devnull, 'w')  # noqa: SIM115 - until the end of the process


def on_first(action: Callable[[], None]) -> None:
    """Runs `action` in the first process alone; of what it raises, all know.

    Raises:
      UserError, RunError: as `action` does.
    """
    import jax  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415
    from jax.experimental import multihost_utils  # noqa: PLC0415

    if jax.process_count() == 1:
        action()
        return
    said = ''
    if jax.process_index() == 0:
        try:
            action()
        except (UserError, RunError) as error:
            said = f'{error.exit_code} {error}'
    message = np.zeros(4096, np.uint8)
    encoded = said.encode()[: len(message)]
    message[: len(encoded)] = list(encoded)
    heard = bytes(multihost_utils.broadcast_one_to_all(message)).rstrip(b'\0')
    said = heard.decode(errors='ignore')  # It may have been cut within a letter.
    if said:
        raise (UserError if said[0] == '2' else RunError)(said[2:])
