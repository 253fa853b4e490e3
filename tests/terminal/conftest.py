"""What the tests of the command line can use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mlpdeploy.terminal import cli as command_line

Said = Callable[..., tuple[str, str]]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """Run a command in this process; what it says on stdout and stderr."""

    def run(*arguments: object, code: int = 0) -> tuple[str, str]:
        with pytest.raises(SystemExit) as left:
            command_line.main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert left.value.code == code, printed
        return printed.out, printed.err

    return run


@pytest.fixture
def fails(said: Said) -> Any:
    """Run a command that fails; the one line that it says."""

    def run(*arguments: object, code: int = 2) -> str:
        out, err = said(*arguments, code=code)
        assert out == "" and "Traceback" not in err
        lines = err.splitlines()
        first = next(index for index, line in enumerate(lines) if line.startswith("error: "))
        assert all(line.startswith("  ") for line in lines[first + 1 :]), lines  # nothing but details
        return lines[first]

    return run
