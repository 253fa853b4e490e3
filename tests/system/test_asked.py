"""A process that is asked: what it prints beside its answers, how it fails to give one, and that it never stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mlpdeploy.system import asked, processes
from mlpdeploy.system.asked import NoAnswer
from tests.conftest import REPOSITORY
from tests.system.test_processes import alive, until

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="process groups of a POSIX system")]

ANSWERING = """
import json, sys
print("a banner of this interpreter", flush=True)
for line in sys.stdin:
    question = json.loads(line)
    {before}
    print(sys.argv[1], json.dumps({answer}), flush=True)
"""


def words(answer: str = "question", before: str = "pass") -> list[str]:
    return [sys.executable, "-S", "-c", ANSWERING.format(answer=answer, before=before)]


def test_answers_come_one_by_one_whatever_is_printed_beside_them() -> None:
    with asked.asked(words(before="print('{}', 'rubbish')")) as process:
        assert [process.ask({"number": number}, 60) for number in range(3)] == [{"number": n} for n in range(3)]


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (words(before="sys.exit('no engine here')"), r"ended with exit code 1 \(no engine here\)"),
        (words(before="import os; os.kill(os.getpid(), 9)"), r"was ended by signal 9 \(a banner of this interpreter\)"),
        (words(answer="[1]"), r"gave an answer that is none \(\[1\]\)"),
        (words(before="import os; os.close(1); import time; time.sleep(600)"), r"closed its stdout \(a banner"),
        (["/bin/sh", "-c", "exit 3"], r"ended with exit code 3"),
        (["/bin/sh", "-c", "exec yes rubbish"], r"printed something else than answers \(rubbish\)"),
        (["/bin/sh", "-c", "head -c 3000000 /dev/zero"], "ended with exit code 0"),
    ],
)
def test_why_there_is_no_answer_is_said(command: list[str], why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GRACE", 0.5)
    with asked.asked(command) as process, pytest.raises(NoAnswer, match=f"^{why}"):
        process.ask({}, 60)


def test_one_that_does_not_answer_is_given_up_and_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GRACE", 0.2)
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    with asked.asked(words("__import__('os').getpid()", f"{stubborn} if question else None")) as process:
        with pytest.raises(NoAnswer, match=r"^did not answer within 0.5 s$"):
            process.ask({"wait": True}, 0.5)
        number = process._process.pid
    until(lambda: not alive(number))


def test_an_interruption_ends_it_and_its_children(tmp_path: Path) -> None:
    child = "import subprocess; print(subprocess.Popen(['sleep', '600']).pid, file=open('child', 'w', buffering=1))"
    command = ["/bin/sh", "-c", f'cd {tmp_path} && exec "$@"', "sh", *words("{}", child)]
    with pytest.raises(KeyboardInterrupt), asked.asked(command) as process:
        process.ask({}, 60)
        raise KeyboardInterrupt
    until(lambda: not alive(process._process.pid) and not alive(int((tmp_path / "child").read_text())))


ASKING = """
import sys
from mlpdeploy.system.asked import asked
with asked({command!r}) as process:
    print(process.ask({{}}, 60)["pid"], flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_it_does_not_outlive_the_one_that_asks(number: int) -> None:
    program = ASKING.format(command=words('{"pid": __import__("os").getpid()}'))
    how = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen([sys.executable, "-c", program], cwd=REPOSITORY, **how) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.send_signal(number)
    until(lambda: not alive(pid))


def test_a_program_that_is_not_there_is_the_callers_to_name() -> None:
    with pytest.raises(FileNotFoundError), asked.asked(["/nowhere/python"]):
        pass
