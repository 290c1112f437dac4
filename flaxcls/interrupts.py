"""SIGINT and SIGTERM as a request to save and stop."""

import signal


class SignalFlag:
    """Notes SIGINT and SIGTERM instead of dying of them; a second one kills as usual."""

    def __enter__(self):
        self.signal = None
        self._old = {}
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._note)
        except ValueError:  # Not the main thread, as in some notebooks: the owner takes signals.
            pass
        return self

    def _note(self, number, frame):
        del frame
        self.signal = number
        self._restore()

    def _restore(self):
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def __exit__(self, *exception):
        self._restore()
