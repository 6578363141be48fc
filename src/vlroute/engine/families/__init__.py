"""Families of models that run in this process; docs/how-to/model_families.md shows how to add one.

Imports neither torch nor transformers.
"""

from __future__ import annotations

from vlroute.engine.families import qwen3_5, qwen3_vl
from vlroute.engine.families.endpoints import ENDPOINT_FAMILIES, EndpointFamily
from vlroute.engine.families.family import Family

__all__ = ["ENDPOINT_FAMILIES", "FAMILIES", "EndpointFamily", "Family", "family_of_hub_id", "known_families"]

#: By `model_type` in config.json. Families with experts come first, because their hub IDs are longer.
FAMILIES: dict[str, Family] = {
    family.model_type: family for family in (qwen3_vl.MOE, qwen3_vl.DENSE, qwen3_5.MOE, qwen3_5.DENSE)
}


def family_of_hub_id(name: str) -> Family | None:
    """The family to which a hub ID belongs by its name; None if the name does not tell."""
    model = name.rpartition("/")[2]
    return next((family for family in FAMILIES.values() if family.hub_names.fullmatch(model)), None)


def known_families() -> str:
    """All families, for error messages."""
    return ", ".join(f"{family.model_type!r} (such as {family.example!r})" for family in FAMILIES.values())
