"""What the tests of the command line can use."""

from __future__ import annotations

from collections.abc import Callable

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
