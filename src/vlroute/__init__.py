"""vlroute: should this vision-language request think?

Names are loaded when first used: `import vlroute` brings neither torch nor transformers.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlroute.answer import Answer as Answer
    from vlroute.answer import AnswerDelta as AnswerDelta
    from vlroute.answer import Decided as Decided
    from vlroute.answer import Event as Event
    from vlroute.answer import Finished as Finished
    from vlroute.answer import ThinkingDelta as ThinkingDelta
    from vlroute.answer import Timing as Timing
    from vlroute.answer import Usage as Usage
    from vlroute.chat import Chat as Chat
    from vlroute.chat import Turn as Turn
    from vlroute.decision.frontier import Outlook as Outlook
    from vlroute.decision.ocr_captioner import OcrCaptioner as OcrCaptioner
    from vlroute.decision.policy import Decision as Decision
    from vlroute.decision.policy import Policy as Policy
    from vlroute.decision.target import Target as Target
    from vlroute.engine.disk_tier import DiskTier as DiskTier
    from vlroute.engine.endpoint import Endpoint as Endpoint
    from vlroute.engine.prefix_cache import PrefixCache as PrefixCache
    from vlroute.engine.vision_cache import VisionCache as VisionCache
    from vlroute.errors import ArtefactError as ArtefactError
    from vlroute.errors import ChatBusyError as ChatBusyError
    from vlroute.errors import ChatFileError as ChatFileError
    from vlroute.errors import CheckpointError as CheckpointError
    from vlroute.errors import EndpointError as EndpointError
    from vlroute.errors import ExtraMissing as ExtraMissing
    from vlroute.errors import InputError as InputError
    from vlroute.errors import LimitError as LimitError
    from vlroute.errors import MessageError as MessageError
    from vlroute.errors import ModeUnavailable as ModeUnavailable
    from vlroute.errors import OutputError as OutputError
    from vlroute.errors import RouterClosedError as RouterClosedError
    from vlroute.errors import SettingsError as SettingsError
    from vlroute.errors import StoreError as StoreError
    from vlroute.errors import UnknownAnswerError as UnknownAnswerError
    from vlroute.errors import UnreadableMediaError as UnreadableMediaError
    from vlroute.errors import VLRouteError as VLRouteError
    from vlroute.media import FrameSampling as FrameSampling
    from vlroute.media import Limits as Limits
    from vlroute.media import Picture as Picture
    from vlroute.media import PixelBudget as PixelBudget
    from vlroute.media import Video as Video
    from vlroute.media import load_picture as load_picture
    from vlroute.media import load_video as load_video
    from vlroute.modes import Mode as Mode
    from vlroute.router import Router as Router

__version__ = "0.1.0"

_HOMES = {
    "Answer": "vlroute.answer",
    "AnswerDelta": "vlroute.answer",
    "ArtefactError": "vlroute.errors",
    "Chat": "vlroute.chat",
    "ChatBusyError": "vlroute.errors",
    "ChatFileError": "vlroute.errors",
    "CheckpointError": "vlroute.errors",
    "Decided": "vlroute.answer",
    "Decision": "vlroute.decision.policy",
    "DiskTier": "vlroute.engine.disk_tier",
    "Endpoint": "vlroute.engine.endpoint",
    "EndpointError": "vlroute.errors",
    "Event": "vlroute.answer",
    "ExtraMissing": "vlroute.errors",
    "Finished": "vlroute.answer",
    "FrameSampling": "vlroute.media",
    "InputError": "vlroute.errors",
    "LimitError": "vlroute.errors",
    "Limits": "vlroute.media",
    "MessageError": "vlroute.errors",
    "Mode": "vlroute.modes",
    "ModeUnavailable": "vlroute.errors",
    "OcrCaptioner": "vlroute.decision.ocr_captioner",
    "Outlook": "vlroute.decision.frontier",
    "Picture": "vlroute.media",
    "PixelBudget": "vlroute.media",
    "Policy": "vlroute.decision.policy",
    "PrefixCache": "vlroute.engine.prefix_cache",
    "Router": "vlroute.router",
    "OutputError": "vlroute.errors",
    "RouterClosedError": "vlroute.errors",
    "SettingsError": "vlroute.errors",
    "StoreError": "vlroute.errors",
    "Target": "vlroute.decision.target",
    "ThinkingDelta": "vlroute.answer",
    "Timing": "vlroute.answer",
    "Turn": "vlroute.chat",
    "UnknownAnswerError": "vlroute.errors",
    "UnreadableMediaError": "vlroute.errors",
    "Usage": "vlroute.answer",
    "VLRouteError": "vlroute.errors",
    "Video": "vlroute.media",
    "VisionCache": "vlroute.engine.vision_cache",
    "load_picture": "vlroute.media",
    "load_video": "vlroute.media",
}
__all__ = [*_HOMES, "__version__"]

# if torchao is installed, transformers imports it and torch logs a deprecation that users cannot act on
logging.getLogger("torch.utils._pytree").addFilter(lambda record: "register_constant" not in str(record.msg))


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vlroute' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
