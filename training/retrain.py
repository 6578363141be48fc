"""Retrain the complexity classifier: `python training/retrain.py RECORDS… --out FOLDER`; see docs/decision.md."""

try:
    from vlroute.learning.train import main
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: training needs more than running; pip install 'vlroute[train]'") from error

if __name__ == "__main__":
    raise SystemExit(main())
