"""The line between keeper and worker: questions are answered in order, news waits for who is slow, the end shows as EOF."""

import errno
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recovery_box.line import MESSAGE_MAX, Line
from tests.model.support import examples
from tests.unit.test_custody import Failing

PATIENCE = 10.0
MESSAGES = st.lists(st.binary(min_size=1, max_size=200), max_size=20)


@pytest.fixture
def line() -> Iterator[Line]:
    """Both ends in one process."""
    made = Line()
    yield made
    made.close()


def readable(fd: int, seconds: float = 0) -> bool:
    """Whether there is something to read within the time."""
    return bool(select.select([fd], [], [], seconds)[0])


def writable(fd: int) -> bool:
    """Whether more can be written."""
    return bool(select.select([], [fd], [], 0)[1])


def forked(work: Callable[[], object]) -> int:
    """A child that does something and ends with 0, or with 1 if that failed; its pid."""
    pid = os.fork()
    if not pid:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return pid


def status_of(pid: int) -> int:
    """How a child ended."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Asking(threading.Thread):
    """A worker that asks, in a thread."""

    def __init__(self, line: Line, *questions: bytes) -> None:
        super().__init__(daemon=True)
        self.line, self.questions = line, questions
        self.answers: list[bytes] = []
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            for question in self.questions:
                self.answers.append(self.line.ask(question))
        except BaseException as e:
            self.error = e

    def ends(self) -> None:
        """Waits for the last answer."""
        self.join(PATIENCE)
        assert not self.is_alive()


# ---- questions


def test_without_a_question_there_is_nothing_to_answer(line: Line) -> None:
    assert not readable(line.question_fd)
    assert not line.answer(lambda question: pytest.fail("nobody asked"))


@examples(30)
@given(MESSAGES)
def test_each_question_gets_its_own_answer_in_order(questions: list[bytes]) -> None:
    line = Line()
    worker = Asking(line, *questions)
    for _ in questions:
        assert readable(line.question_fd, PATIENCE)
        assert line.answer(lambda question: question + b"!")
    worker.ends()
    assert worker.error is None
    assert worker.answers == [question + b"!" for question in questions]
    assert not readable(line.question_fd)
    line.close()


def test_the_longest_question_and_answer(line: Line) -> None:
    worker = Asking(line, b"q" * MESSAGE_MAX)
    assert readable(line.question_fd, PATIENCE)
    assert line.answer(lambda question: question.replace(b"q", b"a"))
    worker.ends()
    assert worker.answers == [b"a" * MESSAGE_MAX]


def test_news_told_before_an_answer_is_there_when_the_answer_comes(line: Line) -> None:
    def reply(question: bytes) -> bytes:
        line.tell(b"news")
        return b"answer"

    worker = Asking(line, b"question")
    assert readable(line.question_fd, PATIENCE)
    assert line.answer(reply)
    worker.ends()
    assert line.hear() == b"news"


# ---- news


def test_without_news_there_is_nothing_to_hear(line: Line) -> None:
    assert not readable(line.hearing_fd)
    assert line.hear() is None


@examples(50)
@given(MESSAGES)
def test_news_comes_in_order_and_message_by_message(news: list[bytes]) -> None:
    line = Line()
    for message in news:
        line.tell(message)
    assert [line.hear() for _ in news] == news
    assert line.hear() is None
    line.close()


def test_news_that_does_not_fit_waits_and_loses_neither_order_nor_bytes(line: Line) -> None:
    told = [b"%d" % n + b"." * 1000 for n in range(3000)]
    went = [line.tell(message) for message in told]
    assert went[0]
    assert not went[-1]
    assert went == sorted(went, reverse=True), "nothing overtakes what waits"
    assert not writable(line.telling_fd)
    heard: list[bytes] = []
    while len(heard) < len(told):
        message = line.hear()
        if message is None:
            assert writable(line.telling_fd)
            line.tell_rest()
        else:
            heard.append(message)
    assert heard == told
    assert line.tell_rest()
    assert line.tell(b"again")


def test_nothing_waits_for_a_dead_worker(line: Line) -> None:
    while line.tell(bytes(1000)):
        pass
    line._worker_hears.close()
    assert line.tell_rest()
    assert line.tell(b"more")
    assert not line._untold


def test_what_is_too_long_for_a_message_is_not_entrusted(line: Line) -> None:
    assert not line.entrust(bytes(64 << 20), (line.telling_fd,))
    assert line.entrust(b"short", (line.telling_fd,))
    message, descriptors = line.receive(1) or (b"", [])
    assert message == b"short"
    os.close(*descriptors)


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.ENOBUFS, errno.ETOOMANYREFS], ids=errno.errorcode.get)
def test_nothing_is_entrusted_while_the_machine_is_short_of_something(line: Line, number: int) -> None:
    line._keeper_tells.close()
    line._keeper_tells = Failing(number)  # type: ignore[assignment]
    assert not line.entrust(b"message", (line.hearing_fd,))


# ---- the end of either


def test_a_worker_hears_the_end_of_the_keeper(line: Line) -> None:
    line.tell(b"last")
    line._keeper_tells.close()
    assert line.hear() == b"last"
    with pytest.raises(EOFError):
        line.hear()


def test_a_worker_that_waits_for_an_answer_learns_of_the_end_of_the_keeper(line: Line) -> None:
    worker = Asking(line, b"question")
    assert readable(line.question_fd, PATIENCE)
    assert line._keeper_answers.recv(MESSAGE_MAX) == b"question"
    line._keeper_answers.close()
    worker.ends()
    assert isinstance(worker.error, EOFError)


@pytest.mark.parametrize("asked_before", [False, True], ids=["asking a dead one", "dying with the question unread"])
def test_whoever_asks_a_keeper_that_is_gone_learns_it_the_same_way(line: Line, asked_before: bool) -> None:
    worker = Asking(line, b"question") if asked_before else None
    if worker is not None:
        assert readable(line.question_fd, PATIENCE)
    line._keeper_answers.close()
    worker = worker if worker is not None else Asking(line, b"question")
    worker.ends()
    assert isinstance(worker.error, EOFError)


def test_a_worker_that_dies_before_its_answer_costs_nothing(line: Line) -> None:
    line._worker_asks.send(b"question")
    line._worker_asks.close()
    line.answer(lambda question: b"answer")
    assert not line.answer(lambda question: b"answer")


def test_the_ends_of_a_fork_are_its_own() -> None:
    """Each side keeps its ends alone, so that the end of one is seen by the other."""
    line = Line()

    highest = max(line._worker_asks.fileno(), line._worker_hears.fileno())

    def child() -> None:
        line.in_worker()
        assert line.ask(b"who?") == b"you"
        assert readable(line.hearing_fd, PATIENCE)
        assert line.hear() == b"news"
        assert max(line._worker_asks.fileno(), line._worker_hears.fileno()) <= highest

    pid = forked(child)
    line.in_keeper()
    assert line.tell(b"news")
    assert readable(line.question_fd, PATIENCE)
    assert line.answer(lambda question: b"you" if question == b"who?" else b"")
    assert status_of(pid) == 0
    assert readable(line.question_fd, PATIENCE), "the end of the worker"
    assert not line.answer(lambda question: b"")
    assert line.tell(b"to nobody")
    line.close()


def test_a_worker_that_is_killed_while_it_waits_leaves_its_question_unanswered() -> None:
    line = Line()

    def child() -> NoReturn:
        line.in_worker()
        line.ask(b"question")
        os._exit(1)

    pid = forked(child)
    line.in_keeper()
    assert readable(line.question_fd, PATIENCE)
    os.kill(pid, signal.SIGKILL)
    assert status_of(pid) == -signal.SIGKILL
    asked: list[bytes] = []

    def reply(question: bytes) -> bytes:
        asked.append(question)
        return b"answer"

    line.answer(reply)
    assert asked == [b"question"]
    assert not line.answer(lambda question: pytest.fail("nobody is left to ask"))
    line.close()
