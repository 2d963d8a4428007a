"""Samples are read in a child process: what it returns, raises, prints or breaks, and what it leaves as it was."""

from __future__ import annotations

import fcntl
import os
import pickle
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_explain.probes import child
from lightning_explain.probes.child import ChildDiedError, in_child
from training import loader

HERE = "read in the training process, because"


def process(**here: Callable[..., Any]) -> int:
    return os.getpid()


@pytest.mark.skipif(sys.platform != "linux", reason="Only Linux says what a process has computed.")
def test_the_seconds_of_a_process_are_known_where_the_kernel_does_not_list_its_children(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def text(path: str) -> str:
        if path.endswith("children"):
            raise FileNotFoundError(path)
        return read(path)

    read = child._text
    monkeypatch.setattr(child, "_text", text)
    assert (child.seconds_of(os.getpid()) or 0.0) > 0


def test_of_a_process_of_which_the_system_says_nothing_no_seconds_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def text(path: str) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(child, "_text", text)
    assert child.seconds_of(os.getpid()) is None


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.uint64], ids=str)
def test_unsigned_numbers_come_as_they_are(dtype: torch.dtype) -> None:
    largest = torch.iinfo(dtype).max
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = in_child(lambda: {"image": torch.tensor([0, 1, largest], dtype=dtype), "path": ["a"]}, {})
    assert found["image"].dtype == dtype
    assert found["image"].tolist() == [0, 1, largest]


def test_the_work_is_done_in_another_process() -> None:
    assert in_child(process, {}) != os.getpid()


def test_what_the_work_asks_for_is_done_in_this_process() -> None:
    asked: list[Tensor] = []

    def on_device(batch: Tensor) -> Tensor:
        asked.append(batch)
        return batch + os.getpid()

    found = in_child(lambda on_device: on_device(on_device(torch.zeros(2))), {"on_device": on_device})
    assert found.tolist() == [2.0 * os.getpid()] * 2
    assert len(asked) == 2


def test_an_error_of_what_it_asks_for_reaches_the_work() -> None:
    def fails() -> None:
        raise LookupError("no such device")

    def work(fails: Callable[[], None]) -> str:
        try:
            fails()
        except LookupError as error:
            return f"caught {error}"
        return ""

    assert in_child(work, {"fails": fails}) == "caught no such device"


# -- failures ----------------------------------------------------------------------------------------------------------


class AwkwardError(OSError):
    """An error that cannot be made again from what it holds."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


@pytest.mark.parametrize(
    "error", [FileNotFoundError(2, "no file", "x.png"), MemoryError("full"), AwkwardError("no ", "file")]
)
def test_accidents_are_raised_with_their_text_and_not_tried_again(error: Exception) -> None:
    calls = []

    def work() -> None:
        calls.append(1)
        raise error

    kind = OSError if isinstance(error, AwkwardError) else type(error)
    with pytest.raises(kind, match=r"no file|full") as raised:
        in_child(work, {})
    assert "raise error" in str(raised.value.__cause__)
    assert calls == []


def test_other_errors_are_those_of_this_process() -> None:
    calls = []

    def work() -> None:
        calls.append(os.getpid())
        raise ValueError("the sample is broken")

    with pytest.raises(ValueError, match="the sample is broken"):
        in_child(work, {})
    assert calls == [os.getpid()]
    with pytest.raises(ValueError, match="the sample is broken"):
        in_child(work, {}, retries=False)
    assert calls == [os.getpid()]


def only_here(broken: Callable[[], Any]) -> Callable[[], str]:
    """Work that can only be done in this process."""
    this = os.getpid()
    return lambda: "read" if os.getpid() == this else broken()


def wait() -> None:
    threading.Event().wait()


def fail() -> None:
    raise RuntimeError("Cannot re-initialize CUDA in forked subprocess")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (fail, r"failed \(RuntimeError: Cannot re-initialize CUDA"),
        (threading.Lock, "cannot be sent by a child process: TypeError"),
        (wait, r"did nothing for \d+ seconds"),
    ],
)
def test_what_only_this_process_can_read_is_read_here_and_reported(
    broken: Callable[[], Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if broken is wait:
        monkeypatch.setattr(child, "PATIENCE", 0.1)
    with pytest.warns(UserWarning, match=f"{HERE}.*{reason}"):
        assert in_child(only_here(broken), {}) == "read"


def test_a_child_that_computes_may_be_silent_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    # As long as that, for the system counts hundredths of a second, and may give the child a small share of them.
    monkeypatch.setattr(child, "PATIENCE", 0.5)

    def work() -> int:
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            pass
        return os.getpid()

    assert in_child(work, {}) != os.getpid()


def test_where_no_process_can_be_started_samples_are_read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        raise BlockingIOError("too many processes")

    monkeypatch.setattr(os, "fork", fork)
    with pytest.warns(UserWarning, match=f"{HERE} no process can be started .too many processes"):
        assert in_child(process, {}) == os.getpid()


@pytest.mark.parametrize(
    ("ends", "text"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), r"signal 9 \(SIGKILL\)"),
        (lambda: os._exit(3), "ended with code 3"),
    ],
)
def test_a_child_that_dies_is_an_accident(ends: Callable[[], None], text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forked, fork = [], os.fork

    def noted() -> int:
        forked.append(fork())
        return forked[-1]

    monkeypatch.setattr(os, "fork", noted)
    with pytest.raises(ChildDiedError, match=text):
        in_child(ends, {})
    with pytest.raises(ChildProcessError):
        os.waitpid(forked[0], os.WNOHANG)  # No zombie is left.


# -- what a child leaves as it was -------------------------------------------------------------------------------------


@contextmanager
def locked() -> Iterator[threading.Lock]:
    """A lock that another thread holds."""
    lock, held, free = threading.Lock(), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            free.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        yield lock
    finally:
        free.set()
        thread.join()


def test_threads_are_no_reason_for_an_error_where_warnings_are_errors() -> None:
    with locked(), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert in_child(process, {}) != os.getpid()


def test_output_is_written_once(capfd: pytest.CaptureFixture[str]) -> None:
    print("before", end=" ")
    in_child(lambda: print("inside", end=" "), {})
    print("after")
    assert capfd.readouterr().out == "before inside after\n"


def test_handlers_of_signals_stay_with_this_process() -> None:
    seen: list[int] = []
    former = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    try:

        def work() -> str:
            os.kill(os.getpid(), signal.SIGUSR1)
            return f"saw {seen}"

        assert in_child(work, {}) == "saw []"
    finally:
        signal.signal(signal.SIGUSR1, former)


def test_workers_that_a_loader_keeps_stay_with_this_process() -> None:
    kept = DataLoader(loader(0, 16).dataset, 4, num_workers=1, persistent_workers=True)
    first = iter(kept)
    assert len(next(first)) == 2
    numbers = in_child(lambda: [float(x.sum()) for x, _ in kept], {})
    assert [float(x.sum()) for x, _ in first] == numbers[1:]


@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_what_is_shared_and_cannot_be_put_back_is_reported(kind: str, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"12345678")

    def work() -> bytes:
        if kind == "pipe":
            return os.read(reading, 3)
        (tmp_path / "cache.npy").write_bytes(b"1234")
        return b"123"

    expected = f"3 bytes of descriptor {reading} are consumed" if kind == "pipe" else "cache.npy was opened for writing"
    with pytest.warns(
        UserWarning, match=f"changed something outside of the process, which cannot be restored.*{expected}"
    ):
        assert in_child(work, {}) == b"123"
    os.close(reading)
    os.close(writing)


def test_what_another_process_takes_from_a_pipe_is_not_reported() -> None:
    reading, writing = os.pipe()
    with subprocess.Popen(["cat"], stdin=reading, stdout=subprocess.DEVNULL) as reader:
        os.close(reading)
        reader.send_signal(signal.SIGSTOP)
        os.waitpid(reader.pid, os.WUNTRACED)
        os.write(writing, b"12345678")

        def work() -> int:
            os.kill(reader.pid, signal.SIGCONT)
            while waiting := struct.unpack("i", fcntl.ioctl(writing, termios.FIONREAD, b"\0" * 4))[0]:
                time.sleep(0.01)
            return int(waiting)

        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            result = in_child(work, {})
        os.close(writing)
    assert result == 0
    assert not said


def test_the_error_of_a_child_that_died_can_be_pickled() -> None:
    assert str(pickle.loads(pickle.dumps(ChildDiedError("it died")))) == "it died"


def test_where_a_fork_is_not_safe_a_new_process_does_portable_work(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cloudpickle")
    monkeypatch.setattr(sys, "platform", "darwin")
    parent, asked = os.getpid(), []

    def work(say: Callable[[str], None]) -> int:
        say(f"asked from {os.getpid()}")
        return os.getpid()

    found = in_child(process, {"say": asked.append}, portable=lambda: work)
    assert found != parent
    assert asked == [f"asked from {found}"]
    with pytest.warns(UserWarning, match=f"{HERE} a fork is not safe on darwin, nor can they be sent to a new process"):
        assert in_child(process, {}, portable=lambda: threading.Lock()) == parent  # type: ignore[arg-type,return-value]
