"""`vlroute key`: a new API key for a key file."""

from __future__ import annotations

from typing import Annotated

import typer


def key(name: Annotated[str, typer.Argument(help="Name of the key, for logs and counts.")]) -> None:
    """Make an API key: print it on stderr, and its entry in a key file on stdout. The entry contains only a digest.

    vlroute key team-a >> keys.toml
    """
    from vlroute.serving.keys import new_key

    secret, entry = new_key(name)
    typer.echo(f"{secret}\nThis key is not shown again.", err=True)
    typer.echo(f"\n{entry}", nl=False)  # the last line of the file may have no end
