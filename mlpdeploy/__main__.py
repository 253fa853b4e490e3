"""`python -m mlpdeploy`."""

from mlpdeploy.cli import main

main()
