"""`python -m vlroute`: the same as the command."""

from vlroute.cli.app import run

run()
