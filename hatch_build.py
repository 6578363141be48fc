"""Package metadata that depends on the address of the repository.

The address is one setting: `repository` under `[tool.hatch.metadata.hooks.custom]` in pyproject.toml. While it is
empty, the package has no URLs and its README keeps relative links.
"""

from __future__ import annotations

from typing import Any

from hatch_fancy_pypi_readme import hooks
from hatchling.metadata.plugin.interface import MetadataHookInterface


class RepositoryHook(MetadataHookInterface):
    """Sets `readme` and `urls`."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Change `metadata` in place."""
        address = self.config.get("repository", "").rstrip("/")
        substitutions = []
        if address:
            metadata["urls"] = {
                "Repository": address,
                "Issues": f"{address}/issues",
                "Changelog": f"{address}/blob/main/CHANGELOG.md",
            }
            substitutions = [{"pattern": r"\]\((?![a-z]+:|#)([^)]+)\)", "replacement": rf"]({address}/blob/main/\1)"}]
        readme = {
            "content-type": "text/markdown",
            "fragments": [{"path": "README.md"}],
            "substitutions": substitutions,
        }
        hooks.FancyReadmeMetadataHook(self.root, readme).update(metadata)
