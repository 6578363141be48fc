"""The command line of vlroute."""

from vlroute.cli.app import run

__all__ = ["run"]
