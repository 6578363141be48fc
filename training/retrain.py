"""Retrain the router: the same command as `vlroute train`; see docs/reference/records.md."""

import sys

from vlroute.cli.app import run

if __name__ == "__main__":
    run(["train", *sys.argv[1:]])
