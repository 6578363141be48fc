"""One model is loaded at a time, because transformers replaces a method of all models meanwhile.

If two loads overlap, the method may stay replaced, and tied weights are missing from all models that are loaded later.
"""

from __future__ import annotations

import threading

#: Held while a model of transformers is loaded, also by other packages.
MODEL_LOADING = threading.RLock()
