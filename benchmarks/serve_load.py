"""A server under load: how many requests succeed or are lost, and how long they take.

  python -m benchmarks.serve_load --workdir=runs/digits_resnet20 --requests=1000 --clients=8

The server is started at a free port of this machine's loopback, asked by so many clients, each of
which sends its next request when the last has returned, and ended by SIGTERM. The images are JPEGs
of noise, of 100 kB or so at 256 pixels. Clients and server share the cores. Exit code 1 if a
request is lost or refused, or the server does not end with 0.
"""

import argparse
import http.client
import io
import os
import signal
import subprocess
import sys
import threading
import time
from typing import NamedTuple

import numpy as np
from PIL import Image

_IMAGES = 16


class Sent(NamedTuple):
    """A request: the status of its response, None if there was none, and the seconds it took."""

    status: int | None
    seconds: float


def make_images(side: int) -> list[bytes]:
    """Returns JPEGs of noise, side x side."""
    rng, files = np.random.default_rng(0), []
    for _ in range(_IMAGES):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(file, 'JPEG')
        files.append(file.getvalue())
    return files


def start(workdir: str, rest: list[str]) -> tuple[subprocess.Popen, int]:
    """Returns the server, ready, and its port."""
    command = [
        sys.executable,
        '-m',
        'flaxcls',
        'serve',
        f'--workdir={workdir}',
        '--port=0',
        *rest,
    ]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    line = server.stdout.readline()
    if not line:
        sys.exit(f'the server ended with {server.wait()}.')
    print(line, end='')
    return server, int(line.split()[0].rsplit(':', 1)[1])


def send(port: int, images: list[bytes], requests: int, clients: int) -> list[Sent]:
    """Sends so many requests from so many clients, each over a connection that it keeps."""
    numbers, sent = iter(range(requests)), []
    lock = threading.Lock()

    def take() -> int | None:
        with lock:
            return next(numbers, None)

    def client() -> None:
        connection = http.client.HTTPConnection('127.0.0.1', port, timeout=60)
        while (number := take()) is not None:
            began = time.perf_counter()
            try:
                connection.request('POST', '/predict', images[number % _IMAGES])
                response = connection.getresponse()
                response.read()
                status = response.status
            except (OSError, http.client.HTTPException):
                connection.close()  # The next request connects anew.
                status = None
            sent.append(Sent(status, time.perf_counter() - began))

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sent


def images_per_batch(port: int) -> float:
    """Returns the mean batch size by the metrics of the server."""
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=60)
    connection.request('GET', '/metrics')
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    values = dict(line.rsplit(' ', 1) for line in lines if not line.startswith('#'))
    return float(values['flaxcls_batch_size_sum']) / float(values['flaxcls_batch_size_count'])


def main() -> None:
    parser = argparse.ArgumentParser(
        'python -m benchmarks.serve_load', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='What is not known here goes to the server, such as --max_wait_ms=0.',
    )  # fmt: skip
    parser.add_argument('--workdir', required=True, help='of the run')
    parser.add_argument('--requests', type=int, default=1000)
    parser.add_argument('--clients', type=int, default=8)
    parser.add_argument('--side', type=int, default=256, help='of the images, pixels')
    flags, rest = parser.parse_known_args()
    for name in ('requests', 'clients', 'side'):
        if getattr(flags, name) < 1:
            parser.error(f'--{name}={getattr(flags, name)} must be positive')
    images = make_images(flags.side)
    server, port = start(flags.workdir, rest)
    try:
        began = time.perf_counter()
        sent = send(port, images, flags.requests, flags.clients)
        seconds = time.perf_counter() - began
        mean_batch = images_per_batch(port)
        server.send_signal(signal.SIGTERM)
        code = server.wait(timeout=60)
    finally:
        server.kill()
    succeeded = [one.seconds for one in sent if one.status == 200]
    lost = sum(one.status is None for one in sent)
    refused = len(sent) - len(succeeded) - lost
    print(
        f'{len(sent):,} requests from {flags.clients} clients, {os.cpu_count()} cores, images of '
        f'{sum(map(len, images)) / _IMAGES / 1e3:.0f} kB: {len(succeeded):,} succeeded, '
        f'{refused} refused, {lost} lost'
    )
    if succeeded:
        median, slow = np.percentile(succeeded, [50, 99]) * 1e3
        print(
            f'latency: median {median:.1f} ms, 99th percentile {slow:.1f} ms; '
            f'{len(succeeded) / seconds:,.0f} requests/s; {mean_batch:.1f} images a batch'
        )
    print(f'after SIGTERM the server ended with {code}')
    sys.exit(int(len(succeeded) < flags.requests or code != 0))


if __name__ == '__main__':
    main()
