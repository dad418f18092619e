"""The core in this process against the reference model (`machine` says what is done): all three copies must stay equal."""

from tests.model.harness import InProcess
from tests.model.machine import StoreMachine
from tests.model.support import examples


class InProcessMachine(StoreMachine):
    """State's copy of the store is compared after each step, too."""

    def begin_with(self) -> InProcess:
        return InProcess(self.guests)


TestInProcess = InProcessMachine.TestCase
TestInProcess.settings = examples(60, steps=40)
