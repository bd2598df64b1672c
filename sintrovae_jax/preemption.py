"""Signals: a run that is told to stop finishes what it must, saves, and all its processes do so at one step."""

import contextlib
import logging
import os
import signal
import time

import jax

from sintrovae_jax import cancellation, parallel

log = logging.getLogger(__name__)
_LOOK = 0.5  # seconds between two looks for a signal while work asks whether it should go on


class Stop:
    """SIGTERM and SIGINT ask to stop after the dispatch in flight; a second one gets its default effect.

    Several processes must stop at one step: there jax's own SIGTERM handler tells all of them (`parallel.preempted`),
    and SIGINT is handed on to it.
    """

    def __init__(self):
        self.signum = 0  # the signal that asked; with several processes, the same on all of them after `asked`
        self._polls = 0

    @contextlib.contextmanager
    def listening(self):
        several = jax.process_count() > 1
        signals = (signal.SIGINT,) if several else (signal.SIGTERM, signal.SIGINT)
        before = {s: signal.getsignal(s) for s in signals}

        def handle(signum, _):
            if several:
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                self.signum = signum
            signal.signal(signum, before[signum])
            log.info("%s: stopping after what is under way", signal.Signals(signum).name)

        for s in signals:
            signal.signal(s, handle)
        try:
            yield self
        finally:
            for s, handler in before.items():
                signal.signal(s, handler)

    def asked(self) -> int:
        """The signal that asks to stop now, or 0. All processes must call it equally often; or one alone, within
        `cancelling`."""
        if not self.signum and jax.process_count() > 1:
            self._polls += 1
            self.signum = signal.SIGTERM if parallel.preempted(self._polls) else 0
        return self.signum

    @contextlib.contextmanager
    def cancelling(self):
        """What the main process does alone and may take minutes: it ends, without an error, at its next
        `cancellation.check` after a signal asks to stop. All processes must call `agree` after it, whatever it ends
        with."""
        looked = time.monotonic()

        def asked():
            nonlocal looked
            if time.monotonic() - looked < _LOOK:
                return False
            looked = time.monotonic()
            return bool(self.asked())

        try:
            with cancellation.cancelled_by(asked):
                yield
        except cancellation.Cancelled:
            log.info("stopping: the evaluation or figure under way is abandoned")

    def agree(self) -> int:
        """All processes wait for the main one, and go on with its answer. Returns the signal that asked, or 0."""
        self._polls, self.signum = parallel.from_main(self._polls, int(self.signum))
        return self.signum
