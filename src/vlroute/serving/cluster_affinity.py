"""Which replica a request belongs to: the one that holds its picture's features and what it read so far."""

from __future__ import annotations

import hashlib
import time
from typing import Any

from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter

from vlroute.media import Picture, Video
from vlroute.messages import Conversation

PATIENCE_SECONDS = 0.1


class Affinity(ConsistentHashRouter):
    """Ray's ring, which goes on to the next replica where one is full; but patient with a busy one.

    Elsewhere the picture would have to be encoded anew. So a replica that computes has longer than Ray's tenth of a
    second to say how long its queue is, and one that is full has `PATIENCE_SECONDS` to get a place free: who asks
    again at once would else be sent away by its own answer, whose place Ray has not cleared yet.
    """

    queue_len_response_deadline_s = 2.0
    max_queue_len_response_deadline_s = 10.0

    async def choose_replicas(self, candidate_replicas: list[Any], pending_request: Any = None) -> list[list[Any]]:
        """One replica after the other, each to be tried if those before it are full. Ray asks again, ever more slowly,
        until one is not."""
        ring: list[list[Any]] = await super().choose_replicas(candidate_replicas, pending_request)
        if pending_request is None or time.time() - pending_request.created_at >= PATIENCE_SECONDS:
            return ring
        return ring[:1]

    @property
    def max_num_routing_tasks(self) -> int:
        """Ray's two for each replica would have requests wait behind those that are patient."""
        return int(self.max_num_routing_tasks_cap)


def affinity(conversation: Conversation, namespace: str) -> str:
    """Equal for all turns of a conversation, however often it is sent anew, and for all that begin with the same
    picture or video; different for each namespace. SHA-256, 64 hex characters."""
    first = next(message for message in conversation.messages if message.role == "user")
    seen = next((part.digest for part in first.parts if isinstance(part, Picture | Video)), None)
    framed = f"vlroute affinity {len(namespace)}:{namespace} {seen or conversation.key}"
    return hashlib.sha256(framed.encode()).hexdigest()
