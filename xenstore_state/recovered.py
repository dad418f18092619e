"""What a State knew that died: reads back what `survival` wrote down.

The newest checkpoint that is whole, and every ledger behind it.  What cannot be read, or cannot be repeated, ends it there:
the store is as it was at that moment, which is a state that has been, but whatever followed is lost.  No client may go on
believing what was lost, so then the store comes back without connections.
"""

import logging
import os
from collections.abc import Iterator
from typing import Final

from recovery_box.ledger import LedgerError, entries
from xenstore_state import checkpoint
from xenstore_state.repetition import FAILURES, Incomplete, Recovered, Repetition
from xenstore_state.survival import file_path, loss_noted, numbers

log = logging.getLogger(__name__)

DAMAGED: Final = "damaged-checkpoint"
"""What a checkpoint is called from then on that cannot be used."""


def recover(directory: str) -> Recovered | None:
    """What a State knew that died; None if nothing usable is left, which the log explains."""
    for number in sorted(numbers(directory, "checkpoint"), reverse=True):
        path = file_path(directory, "checkpoint", number)
        try:
            repetition = Repetition(*checkpoint.read(path))
        except (checkpoint.Damaged, OSError, LookupError, TypeError, ValueError) as e:
            log.error("%s cannot be used: %s", path, e)
            os.replace(path, os.path.join(directory, DAMAGED))
            continue
        return _with_ledgers(repetition, directory, number)
    log.error("there is no usable checkpoint in %s: everything begins anew", directory)
    return None


def _with_ledgers(repetition: Repetition, directory: str, number: int) -> Recovered:
    """What was known after everything behind the checkpoint of this number."""
    count, lost = 0, ""
    try:
        for entry in _ledgers(directory, number):
            repetition.do(entry)
            count += 1
    except Incomplete as end:
        lost = str(end)
    except FAILURES as e:
        lost = f"entry {count + 1}, behind record {repetition.known.sequence}, cannot be repeated ({e!r})"
    known = repetition.known
    known.store.closed.clear()
    known.store.opened.clear()
    if not lost and loss_noted(directory):
        lost = "a State died before it had written down that connections were lost"
    if lost:
        log.error("%s: what follows is lost, and all connections are closed", lost)
        known.give_up_connections()
    log.info("checkpoint %d and %d entries behind it: %d nodes", number, count, known.store.tree.size)
    return known


def _ledgers(directory: str, first: int) -> Iterator[bytes]:
    """All entries since a checkpoint.  Raises `Incomplete` where they cannot be read any further."""
    there = sorted(n for n in numbers(directory, "ledger") if n >= first)
    for expected, number in enumerate(there, first):
        if number != expected:
            raise Incomplete(f"ledger.{expected} is missing")
        path = file_path(directory, "ledger", number)
        try:
            yield from entries(path)
        except (LedgerError, OSError) as e:
            raise Incomplete(f"{path}: {e}") from None
    if not there:
        raise Incomplete(f"ledger.{first} is missing")
