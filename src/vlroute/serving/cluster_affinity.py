"""Which replica a request belongs to: the one that holds its picture's features and what it read so far."""

from __future__ import annotations

import hashlib

from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter

from vlroute.media import Picture, Video
from vlroute.messages import Conversation


class Affinity(ConsistentHashRouter):
    """Ray's ring, which goes on to the next replica where one is full; but patient with a busy one.

    A replica that computes may take a while to say how long its queue is. Ray gives it a tenth of a second and then
    goes elsewhere, where the picture would have to be encoded anew.
    """

    queue_len_response_deadline_s = 2.0
    max_queue_len_response_deadline_s = 10.0


def affinity(conversation: Conversation, namespace: str) -> str:
    """Equal for all turns of a conversation, however often it is sent anew, and for all that begin with the same
    picture or video; different for each namespace. SHA-256, 64 hex characters."""
    first = next(message for message in conversation.messages if message.role == "user")
    seen = next((part.digest for part in first.parts if isinstance(part, Picture | Video)), None)
    framed = f"vlroute affinity {len(namespace)}:{namespace} {seen or conversation.key}"
    return hashlib.sha256(framed.encode()).hexdigest()
