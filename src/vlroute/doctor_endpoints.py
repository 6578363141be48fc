"""What `vlroute doctor` finds out about a pair behind endpoints: whether they answer, and know the models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vlroute.engine.endpoint_file import read_endpoints
from vlroute.engine.remote import RemoteEngine
from vlroute.finding import Finding

DOWN = "start its server, or mend address and key in the file; until then the other mode answers"
UNLISTED = "use a name that its /v1/models lists"


def endpoints(file: Path) -> Iterator[Finding]:
    """One finding each. Errors as of `read_endpoints`."""
    engine = RemoteEngine.over(*read_endpoints(file))
    for mode, health in engine.health().items():
        if not health.reachable:
            yield Finding("pair", mode, health.said, "problem", DOWN)
        elif not health.listed:
            yield Finding("pair", mode, health.said, "problem", UNLISTED)
        else:
            yield Finding("pair", mode, f"{engine.endpoints[mode].name} answers")
    engine.close()
