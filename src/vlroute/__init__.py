"""vlroute: should this vision-language request think?

Names are loaded when first used: `import vlroute` brings neither torch nor transformers.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlroute.chat import Chat as Chat
    from vlroute.chat import Turn as Turn
    from vlroute.decision.captions import OcrCaptioner as OcrCaptioner
    from vlroute.decision.policy import Policy as Policy
    from vlroute.decision.target import Target as Target
    from vlroute.decision.tradeoff import OperatingPoint as OperatingPoint
    from vlroute.engine.cache.disk import DiskTier as DiskTier
    from vlroute.engine.cache.prefix import PrefixCache as PrefixCache
    from vlroute.engine.cache.vision import VisionCache as VisionCache
    from vlroute.engine.remote.endpoint import Endpoint as Endpoint
    from vlroute.errors import ArtifactError as ArtifactError
    from vlroute.errors import ChatBusyError as ChatBusyError
    from vlroute.errors import ChatFileError as ChatFileError
    from vlroute.errors import CheckpointError as CheckpointError
    from vlroute.errors import EndpointError as EndpointError
    from vlroute.errors import InputError as InputError
    from vlroute.errors import LimitError as LimitError
    from vlroute.errors import MessageError as MessageError
    from vlroute.errors import MissingExtraError as MissingExtraError
    from vlroute.errors import ModeUnavailableError as ModeUnavailableError
    from vlroute.errors import OutputError as OutputError
    from vlroute.errors import RouterClosedError as RouterClosedError
    from vlroute.errors import SettingsError as SettingsError
    from vlroute.errors import StoreError as StoreError
    from vlroute.errors import UnknownAnswerError as UnknownAnswerError
    from vlroute.errors import UnreadableMediaError as UnreadableMediaError
    from vlroute.errors import VLRouteError as VLRouteError
    from vlroute.inputs.media import FrameSampling as FrameSampling
    from vlroute.inputs.media import Limits as Limits
    from vlroute.inputs.media import Picture as Picture
    from vlroute.inputs.media import PixelBudget as PixelBudget
    from vlroute.inputs.media import Video as Video
    from vlroute.inputs.media import load_picture as load_picture
    from vlroute.inputs.media import load_video as load_video
    from vlroute.router import Router as Router
    from vlroute.types import Answer as Answer
    from vlroute.types import AnswerDelta as AnswerDelta
    from vlroute.types import Decided as Decided
    from vlroute.types import Decision as Decision
    from vlroute.types import Event as Event
    from vlroute.types import Finished as Finished
    from vlroute.types import Mode as Mode
    from vlroute.types import ThinkingDelta as ThinkingDelta
    from vlroute.types import Timing as Timing
    from vlroute.types import Usage as Usage

__version__ = "0.1.0"

_HOMES = {
    "Answer": "vlroute.types",
    "AnswerDelta": "vlroute.types",
    "ArtifactError": "vlroute.errors",
    "Chat": "vlroute.chat",
    "ChatBusyError": "vlroute.errors",
    "ChatFileError": "vlroute.errors",
    "CheckpointError": "vlroute.errors",
    "Decided": "vlroute.types",
    "Decision": "vlroute.types",
    "DiskTier": "vlroute.engine.cache.disk",
    "Endpoint": "vlroute.engine.remote.endpoint",
    "EndpointError": "vlroute.errors",
    "Event": "vlroute.types",
    "MissingExtraError": "vlroute.errors",
    "Finished": "vlroute.types",
    "FrameSampling": "vlroute.inputs.media",
    "InputError": "vlroute.errors",
    "LimitError": "vlroute.errors",
    "Limits": "vlroute.inputs.media",
    "MessageError": "vlroute.errors",
    "Mode": "vlroute.types",
    "ModeUnavailableError": "vlroute.errors",
    "OcrCaptioner": "vlroute.decision.captions",
    "OperatingPoint": "vlroute.decision.tradeoff",
    "Picture": "vlroute.inputs.media",
    "PixelBudget": "vlroute.inputs.media",
    "Policy": "vlroute.decision.policy",
    "PrefixCache": "vlroute.engine.cache.prefix",
    "Router": "vlroute.router",
    "OutputError": "vlroute.errors",
    "RouterClosedError": "vlroute.errors",
    "SettingsError": "vlroute.errors",
    "StoreError": "vlroute.errors",
    "Target": "vlroute.decision.target",
    "ThinkingDelta": "vlroute.types",
    "Timing": "vlroute.types",
    "Turn": "vlroute.chat",
    "UnknownAnswerError": "vlroute.errors",
    "UnreadableMediaError": "vlroute.errors",
    "Usage": "vlroute.types",
    "VLRouteError": "vlroute.errors",
    "Video": "vlroute.inputs.media",
    "VisionCache": "vlroute.engine.cache.vision",
    "load_picture": "vlroute.inputs.media",
    "load_video": "vlroute.inputs.media",
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
