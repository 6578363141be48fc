"""Weighted fair sharing: which of several flows of requests is served next."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import NamedTuple


class Flow(NamedTuple):
    """The requests that share one part of the capacity: those of one API key, or of one client address.

    Attributes:
        name: Identifies the flow.
        weight: Its part of the capacity relative to the other flows that have work.
    """

    name: str = ""
    weight: float = 1.0


#: The flow of requests that are not told apart.
DEFAULT_FLOW = Flow()


class FairShare:
    """Counts the service that each flow has received, divided by its weight. Not thread-safe.

    A flow that had nothing to do gets no credit for that time: it starts with the count of the active flow that has
    received least (start-time fair queueing, Goyal et al., 1996). So at most the flows ahead of that one are stored.
    """

    def __init__(self) -> None:
        self._received: dict[str, float] = {}
        self._least = 0.0  # of the active flows, at the last call of `advance`

    def received(self, flow: Flow) -> float:
        """What a flow has received. The flow with the least is served next.

        Args:
            flow: The flow.

        Returns:
            The service divided by the weight of the flow.
        """
        return max(self._received.get(flow.name, 0.0), self._least)

    def charge(self, flow: Flow, amount: float) -> None:
        """Count service.

        Args:
            flow: The flow that received it.
            amount: How much, such as a number of tokens.
        """
        self._received[flow.name] = self.received(flow) + amount / flow.weight

    def advance(self, active: Iterable[Flow]) -> None:
        """Let flows that are idle lose their credit.

        Args:
            active: The flows that are served or wait.
        """
        self._least = max(self._least, min((self.received(flow) for flow in active), default=self._least))
        for name in [name for name, received in self._received.items() if received <= self._least]:
            del self._received[name]

    def keep(self, names: Container[str]) -> None:
        """Forget all flows but these. A forgotten flow starts as one that had nothing to do.

        Args:
            names: Names of flows.
        """
        self._received = {name: received for name, received in self._received.items() if name in names}
