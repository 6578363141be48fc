"""vlroute decides per vision-language request whether a model answers at once or reasons first.

The public names of this module are loaded when they are first used: `import vlroute` imports neither torch nor
transformers. Training and evaluation are in `vlroute.learning`, the HTTP server in `vlroute.serving`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from vlroute.lazy import lazy_names

if TYPE_CHECKING:
    from vlroute.chat import Chat as Chat
    from vlroute.chat import Turn as Turn
    from vlroute.decision.captions import Captioner as Captioner
    from vlroute.decision.captions import OcrCaptioner as OcrCaptioner
    from vlroute.decision.captions import VisionProbe as VisionProbe
    from vlroute.decision.classifier import ComplexityClassifier as ComplexityClassifier
    from vlroute.decision.classifier import Prediction as Prediction
    from vlroute.decision.latency import LatencyModel as LatencyModel
    from vlroute.decision.policy import Policy as Policy
    from vlroute.decision.target import Target as Target
    from vlroute.decision.tradeoff import OperatingPoint as OperatingPoint
    from vlroute.engine.cache.disk import DiskTier as DiskTier
    from vlroute.engine.cache.prefix import PrefixCache as PrefixCache
    from vlroute.engine.cache.prefix import PrefixStats as PrefixStats
    from vlroute.engine.cache.vision import CacheStats as CacheStats
    from vlroute.engine.cache.vision import VisionCache as VisionCache
    from vlroute.engine.remote.endpoint import Endpoint as Endpoint
    from vlroute.engine.remote.endpoint import read_endpoints as read_endpoints
    from vlroute.errors import ArtifactError as ArtifactError
    from vlroute.errors import ChatBusyError as ChatBusyError
    from vlroute.errors import ChatFileError as ChatFileError
    from vlroute.errors import CheckpointError as CheckpointError
    from vlroute.errors import EndpointError as EndpointError
    from vlroute.errors import HubError as HubError
    from vlroute.errors import HubUnavailableError as HubUnavailableError
    from vlroute.errors import InputError as InputError
    from vlroute.errors import LimitError as LimitError
    from vlroute.errors import MessageError as MessageError
    from vlroute.errors import MissingExtraError as MissingExtraError
    from vlroute.errors import ModeUnavailableError as ModeUnavailableError
    from vlroute.errors import OutOfMemoryError as OutOfMemoryError
    from vlroute.errors import OutputError as OutputError
    from vlroute.errors import RouterClosedError as RouterClosedError
    from vlroute.errors import SettingsError as SettingsError
    from vlroute.errors import StoreError as StoreError
    from vlroute.errors import UnknownAnswerError as UnknownAnswerError
    from vlroute.errors import UnreadableMediaError as UnreadableMediaError
    from vlroute.errors import VLRouteError as VLRouteError
    from vlroute.inputs.limits import Limits as Limits
    from vlroute.inputs.limits import PixelBudget as PixelBudget
    from vlroute.inputs.media import Picture as Picture
    from vlroute.inputs.media import Video as Video
    from vlroute.inputs.media import load_picture as load_picture
    from vlroute.inputs.media import load_video as load_video
    from vlroute.inputs.video import FrameSampling as FrameSampling
    from vlroute.records import Outcome as Outcome
    from vlroute.records import Record as Record
    from vlroute.records import Skipped as Skipped
    from vlroute.records import read_records as read_records
    from vlroute.records import write_records as write_records
    from vlroute.router import Router as Router
    from vlroute.store import FeedbackExport as FeedbackExport
    from vlroute.store import RatedAnswer as RatedAnswer
    from vlroute.store import Store as Store
    from vlroute.store import export_feedback as export_feedback
    from vlroute.types import Answer as Answer
    from vlroute.types import AnswerDelta as AnswerDelta
    from vlroute.types import Decided as Decided
    from vlroute.types import Decision as Decision
    from vlroute.types import Event as Event
    from vlroute.types import Finished as Finished
    from vlroute.types import FinishReason as FinishReason
    from vlroute.types import Mode as Mode
    from vlroute.types import ModeChoice as ModeChoice
    from vlroute.types import ModelIdentity as ModelIdentity
    from vlroute.types import PassedStage as PassedStage
    from vlroute.types import Preset as Preset
    from vlroute.types import Stage as Stage
    from vlroute.types import ThinkingDelta as ThinkingDelta
    from vlroute.types import Timing as Timing
    from vlroute.types import TokenLogprob as TokenLogprob
    from vlroute.types import ToolCall as ToolCall
    from vlroute.types import ToolCalled as ToolCalled
    from vlroute.types import Usage as Usage

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "vlroute.chat": ["Chat", "Turn"],
        "vlroute.decision.captions": ["Captioner", "OcrCaptioner", "VisionProbe"],
        "vlroute.decision.classifier": ["ComplexityClassifier", "Prediction"],
        "vlroute.decision.latency": ["LatencyModel"],
        "vlroute.decision.policy": ["Policy"],
        "vlroute.decision.target": ["Target"],
        "vlroute.decision.tradeoff": ["OperatingPoint"],
        "vlroute.engine.cache.disk": ["DiskTier"],
        "vlroute.engine.cache.prefix": ["PrefixCache", "PrefixStats"],
        "vlroute.engine.cache.vision": ["CacheStats", "VisionCache"],
        "vlroute.engine.remote.endpoint": ["Endpoint", "read_endpoints"],
        "vlroute.errors": [
            "ArtifactError", "ChatBusyError", "ChatFileError", "CheckpointError", "EndpointError", "HubError",
            "HubUnavailableError", "InputError", "LimitError", "MessageError", "MissingExtraError",
            "ModeUnavailableError", "OutOfMemoryError", "OutputError", "RouterClosedError", "SettingsError",
            "StoreError", "UnknownAnswerError", "UnreadableMediaError", "VLRouteError",
        ],
        "vlroute.inputs.limits": ["Limits", "PixelBudget"],
        "vlroute.inputs.media": ["Picture", "Video", "load_picture", "load_video"],
        "vlroute.inputs.video": ["FrameSampling"],
        "vlroute.records": ["Outcome", "Record", "Skipped", "read_records", "write_records"],
        "vlroute.router": ["Router"],
        "vlroute.store": ["FeedbackExport", "RatedAnswer", "Store", "export_feedback"],
        "vlroute.types": [
            "Answer", "AnswerDelta", "Decided", "Decision", "Event", "FinishReason", "Finished", "Mode", "ModeChoice",
            "ModelIdentity", "PassedStage", "Preset", "Stage", "ThinkingDelta", "Timing", "TokenLogprob",
            "ToolCall", "ToolCalled", "Usage",
        ],
    },
)  # fmt: skip
__all__ += ["__version__"]

# transformers imports torchao if it is installed; torch and torchao then log notes that users cannot act on
logging.getLogger("torch.utils._pytree").addFilter(lambda record: "register_constant" not in str(record.msg))
logging.getLogger("torchao").addFilter(lambda record: "cpp extensions" not in str(record.msg))
