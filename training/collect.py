"""Collect labeled records: the same command as `vlroute collect`; see docs/reference/records.md."""

import sys

from vlroute.cli.app import run

if __name__ == "__main__":
    run(["collect", *sys.argv[1:]])
