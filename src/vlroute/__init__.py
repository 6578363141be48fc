"""vlroute: should this vision-language request think?

Names are loaded when first used: `import vlroute` brings neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlroute.answer import Answer as Answer
    from vlroute.chat import Chat as Chat
    from vlroute.decision.policy import Decision as Decision
    from vlroute.decision.policy import Policy as Policy
    from vlroute.decision.target import Target as Target
    from vlroute.media import Limits as Limits
    from vlroute.router import Router as Router

__version__ = "0.1.0"

_HOMES = {
    "Answer": "vlroute.answer",
    "Chat": "vlroute.chat",
    "Decision": "vlroute.decision.policy",
    "Limits": "vlroute.media",
    "Policy": "vlroute.decision.policy",
    "Router": "vlroute.router",
    "Target": "vlroute.decision.target",
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vlroute' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
