"""Signals: a run that is told to stop saves a checkpoint, at the same step on all its processes."""

import contextlib
import logging
import os
import signal
import time
from collections.abc import Iterator

import jax

from sintrovae_jax import cancellation, parallel, streams

log = logging.getLogger(__name__)
_LOOK = 0.5  # seconds between polls for a signal during cancellable work


class Stop:
    """SIGTERM, SIGINT and a hangup request a stop after the dispatch in flight; a second SIGTERM or SIGINT has its
    default effect.

    A hangup is SIGHUP, or the end of the process that reads stderr through a pipe, which counts as SIGPIPE. Neither
    stops a run that was started with SIGHUP ignored, as by nohup.

    Several processes must stop at the same step: jax's own SIGTERM handler notifies all of them (`parallel.preempted`),
    and other signals are forwarded to it as SIGTERM.
    """

    def __init__(self) -> None:
        self.signum = 0  # the signal that requested the stop; after `asked` the same on all processes
        self._polls = 0
        self._until_hangup = False

    @contextlib.contextmanager
    def listening(self) -> Iterator["Stop"]:
        several = jax.process_count() > 1
        signals = [signal.SIGINT] if several else [signal.SIGTERM, signal.SIGINT]
        self._until_hangup = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
        if self._until_hangup:
            signals.append(signal.SIGHUP)
        before = {s: signal.getsignal(s) for s in signals}

        def handle(signum, _):
            # When a terminal is closed, it and its shell send a SIGHUP each.
            signal.signal(signum, signal.SIG_IGN if signum == signal.SIGHUP else before[signum])
            self._request(signum)

        for s in signals:
            signal.signal(s, handle)
        try:
            yield self
        finally:
            for s, handler in before.items():
                signal.signal(s, handler)

    def _request(self, signum: int) -> None:
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self.signum = self.signum or signum
        log.info("%s: stopping after what is under way", signal.Signals(signum).name)

    def asked(self) -> int:
        """The signal that requested a stop, or 0.

        All processes must call it equally often, except that the main process may call it alone within `cancelling`.
        """
        if self._until_hangup and streams.unread(2):
            self._until_hangup = False
            self._request(signal.SIGPIPE)
        if not self.signum and jax.process_count() > 1:
            self._polls += 1
            self.signum = signal.SIGTERM if parallel.preempted(self._polls) else 0
        return self.signum

    @contextlib.contextmanager
    def cancelling(self) -> Iterator[None]:
        """For long work that only the main process does: after a signal, it ends without an error at its next
        `cancellation.check`.

        All processes must call `agree` afterwards, even if the work raised an exception.
        """
        last_poll = time.monotonic()

        def asked():
            nonlocal last_poll
            if time.monotonic() - last_poll < _LOOK:
                return False
            last_poll = time.monotonic()
            return bool(self.asked())

        try:
            with cancellation.cancelled_by(asked):
                yield
        except cancellation.Cancelled:
            log.info("stopping: the evaluation or figure under way is abandoned")

    def agree(self) -> int:
        """All processes wait for the main one and take its answer. Returns the signal that requested a stop, or 0."""
        self._polls, self.signum = map(int, parallel.from_main(self._polls, int(self.signum)))
        return self.signum
