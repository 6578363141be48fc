"""Names and identities of models."""

from vlroute.hub import EMBEDDED
from vlroute.types import EMBEDDED_MODELS


def test_the_embedded_models_are_those_that_can_be_loaded() -> None:
    assert sorted(EMBEDDED_MODELS) == sorted(EMBEDDED)
