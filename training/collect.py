"""Collect labelled records: `python training/collect.py DATA --out records.jsonl`; see docs/decision.md."""

try:
    from vlroute.learning.collect_command import main
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: collecting needs more than running; pip install 'vlroute[collect]'") from error

if __name__ == "__main__":
    raise SystemExit(main())
