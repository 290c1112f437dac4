"""What a person sees of a run at the terminal or in a notebook."""

import sys
import time
from collections.abc import Mapping

import tqdm


class Progress:
    """A bar on a terminal, plain lines elsewhere: speed, time left, loss, share of waiting."""

    def __init__(self, start_step: int, total_steps: int):
        self._total = total_steps
        self._done = 0
        self._began = 0.0
        self._bar = None
        if sys.stderr.isatty():
            form = '{percentage:3.0f}%|{bar}| step {n_fmt}/{total_fmt}, {remaining} left{postfix}'
            self._bar = tqdm.tqdm(
                initial=start_step, total=total_steps, bar_format=form, dynamic_ncols=True
            )

    def step(self) -> None:
        """Counts one step."""
        self._done += 1
        if self._done == 1:  # The time before is compilation, which says nothing of the rest.
            self._began = time.monotonic()
        if self._bar:
            self._bar.update()

    def show(self, record: Mapping[str, float]) -> None:
        """Shows a record of training metrics."""
        text = f'loss {record["train/loss"]:.4f}, lr {record["train/learning_rate"]:.4g}'
        if 'train/images_per_second' in record:
            text += (
                f', {record["train/images_per_second"]:,.0f} images/s, '
                f'{record["train/data_wait_fraction"]:.0%} waiting for data'
            )
        if self._bar:
            self._bar.set_postfix_str(text)
        else:
            per_step = (time.monotonic() - self._began) / max(self._done - 1, 1)
            left = tqdm.tqdm.format_interval(per_step * (self._total - record['step']))
            print(f'step {record["step"]}/{self._total}: {text}, {left} left', flush=True)

    def say(self, text: str) -> None:
        """Prints a line, above the bar where there is one."""
        if self._bar:
            self._bar.clear()
        print(text, flush=True)
        if self._bar:
            self._bar.refresh()

    def close(self) -> None:
        if self._bar:
            self._bar.close()


class Reporter:
    """Prints all that there is to say of a run."""

    def config(self, text: str) -> None:
        """Prints the config of the run."""
        print(text, end='')

    def metrics(self, progress: Progress, record: Mapping[str, float]) -> None:
        """Shows a record of training metrics."""
        progress.show(record)

    def result(self, text: str) -> None:
        """Prints what has come of the run."""
        print(text, flush=True)


class BriefReporter(Reporter):
    """Leaves a notebook what is run, notes, and a line for each evaluation."""

    def config(self, text: str) -> None:
        pass

    def metrics(self, progress: Progress, record: Mapping[str, float]) -> None:
        pass

    def result(self, text: str) -> None:
        pass
