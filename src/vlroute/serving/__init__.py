"""The HTTP server with the API of OpenAI, the web page, and the cluster of several replicas.

The public names of this package are loaded when they are first used. They need `pip install 'vlroute[serve]'`, the page
`vlroute[ui]`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlroute.lazy import lazy_names

if TYPE_CHECKING:
    from vlroute.serving.app import create_app as create_app
    from vlroute.serving.app import mount_page as mount_page
    from vlroute.serving.settings import ClusterSettings as ClusterSettings
    from vlroute.serving.settings import ServerSettings as ServerSettings

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "vlroute.serving.app": ["create_app", "mount_page"],
        "vlroute.serving.settings": ["ClusterSettings", "ServerSettings"],
    },
)  # fmt: skip
