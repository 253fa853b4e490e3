"""`python -m mlpdeploy`."""

from mlpdeploy.terminal.cli import main

main()
