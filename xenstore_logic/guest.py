"""The loop with trio as its guest: for signals and the orderly end of a Logic that serves until it is told to stop.

Never compiled (`setup.py`): Python handles a signal between two bytecodes, and there are none in compiled code.
"""

import os
import select
import signal
from collections import deque
from collections.abc import Callable
from typing import Any

import trio

from xenstore_logic.loop import Loop
from xenstore_logic.retirement import Retirement
from xenstore_state.restarts import Planned
from xenstore_state.worker import Inheritance, StandBy


class Guest:
    """Runs the loop with trio as its guest."""

    def __init__(self) -> None:
        self._calls: deque[Callable[[], object]] = deque()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._began = self._over = False
        self._loop: Loop | None = None

    def _begin(self) -> None:
        if not self._began:
            self._began = True
            trio.lowlevel.start_guest_run(
                self._supervise,
                run_sync_soon_threadsafe=self._call,
                done_callback=self._done,
                restrict_keyboard_interrupt_to_checkpoints=True,
            )

    def wait(self, stand_by: StandBy) -> Inheritance | None:
        """Stands by; what to serve with, or None if it was told to end before its turn came.  Trio has begun by then."""
        self._begin()
        waiting = select.poll()
        waiting.register(self._bell, select.POLLIN)
        waiting.register(stand_by, select.POLLIN)
        while not self._over:
            for fd, _ in waiting.poll():
                if fd == self._bell:
                    self._answer()
                    continue
                given = stand_by.hear()
                if given is not None:
                    return given
        return None

    def run(self, loop: Loop) -> int:
        """Serves until SIGTERM, then ends trio; or until it is time to retire, which needs no end.  The exit status."""
        self._loop = loop
        retirement = Retirement(loop)
        loop.flush()
        loop.first_turn()
        reason = retirement.reason()
        if reason is not None:
            return reason
        loop.listen_to(self._bell, self._answer)
        self._begin()
        while not self._over:
            reason = retirement.turn()
            if reason is not None:
                return reason
        return Planned.STOP

    def _call(self, call: Callable[[], object]) -> None:
        self._calls.append(call)
        os.eventfd_write(self._bell, 1)

    def _answer(self) -> None:
        os.eventfd_read(self._bell)
        while self._calls:
            self._calls.popleft()()

    def _done(self, outcome: Any) -> None:
        self._over = True
        outcome.unwrap()

    async def _supervise(self) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(self._signals)

    async def _signals(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1) as signals:
            task_status.started()
            async for number in signals:
                if number == signal.SIGTERM:
                    return
                if self._loop is None:
                    continue  # its turn has not come
                if number == signal.SIGHUP:
                    self._loop.core.trace.obey(self._loop.core.store.items.settings)
                else:
                    self._loop.core.retiring = True
