"""`python -m vlroute`: the same as the command."""

from vlroute.cli import run

run()
