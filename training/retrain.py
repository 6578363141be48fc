"""Retrain the complexity classifier: `python training/retrain.py RECORDS… --out FOLDER`; see docs/decision.md."""

from vlroute.learning.train import main

if __name__ == "__main__":
    raise SystemExit(main())
