"""`vlroute push`: upload a router artifact to the hub."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console

from vlroute.errors import InputError


def push(
    router: Annotated[str, typer.Argument(metavar="ROUTER", help="Folder of a router artifact.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Name on the hub, such as user/name.")],
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Of a new repository. Default: as the account is set up.")
    ] = None,
    private_vocabulary: Annotated[
        bool,
        typer.Option(
            "--private-vocabulary", help="Upload hashes instead of words of the training requests, and no vision probe."
        ),
    ] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="Branch to upload to, created if needed. Default: main.")
    ] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Message of the commit.")] = None,
    license: Annotated[
        str | None, typer.Option(metavar="ID", help="License of the artifact for the model card, such as apache-2.0.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Upload without asking.")] = False,
) -> None:
    """Upload a router artifact with a model card to the hub.

    Shows which words of the training requests the artifact contains, and asks before it uploads. The token is HF_TOKEN
    or that of 'hf auth login'.

    vlroute push my-router user/name --private

    vlroute push my-router user/name --private-vocabulary --license apache-2.0
    """
    from vlroute.decision.captions import probe_of
    from vlroute.decision.classifier import ComplexityClassifier
    from vlroute.model_card import vocabulary_of
    from vlroute.sharing import COMMIT_MESSAGE, as_shared, push_router, revealed, router_folder

    folder = router_folder(router)
    classifier, probe = ComplexityClassifier.load(folder), probe_of(folder)
    if not yes:
        if not sys.stdin.isatty():
            raise InputError("vlroute push asks before it uploads, but stdin is no terminal; pass --yes")
        shared = as_shared(classifier, probe, private_vocabulary)
        console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
        console.print(f"warning: {revealed(repo, vocabulary_of(*shared))}", style="yellow")
        typer.confirm(f"Upload to {repo}?", abort=True, err=True)
    commit, is_new = push_router(
        repo, classifier, probe, private=private, revision=revision, commit_message=message or COMMIT_MESSAGE,
        create_pr=create_pr, private_vocabulary=private_vocabulary, license=license,
    )  # fmt: skip
    typer.echo(f"{'uploaded' if is_new else 'unchanged'}: {commit.pr_url or commit.commit_url}")
    typer.echo(f"--router {commit.repo_url.repo_id}@{commit.oid}")
