"""Router artifacts as folders with a model card, and on the hub: upload, download, and what they reveal."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vlroute.checks import refused
from vlroute.decision.artifact import CARD_FILE, WEIGHTS_FILE, read_artifact, weights_path
from vlroute.decision.captions import PROBE_FOLDER, VisionProbe
from vlroute.decision.classifier import ComplexityClassifier
from vlroute.errors import ArtifactError, HubError, HubUnavailableError, OutputError, SettingsError, VLRouteError
from vlroute.files import check_outputs, make_folder, replace_file, shipped
from vlroute.hub import EMBEDDED, HUB_ID, SHIPPED_ROUTERS, Source
from vlroute.model_card import README, Vocabulary, model_card, vocabulary_of
from vlroute.temporary_folder import TemporaryFolder

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

log = logging.getLogger("vlroute")

#: Names of the routers that are part of this package.
SHIPPED = (*EMBEDDED, *(path.removesuffix("/router") for path in SHIPPED_ROUTERS.values()))
#: A router on the hub: "user/name" or "user/name@revision".
_ON_HUB = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>[^@\s]+))?", re.ASCII)
#: Files of an earlier upload that a new one removes if it does not replace them.
_REPLACED = [
    f"{folder}{name}"
    for folder in ("", f"{PROBE_FOLDER}/")
    for name in (CARD_FILE, WEIGHTS_FILE, "weights-*.safetensors")
]
#: Files of a new repository that a user has created on the web page.
_FILES_OF_NEW = {README, ".gitattributes", "LICENSE"}
COMMIT_MESSAGE = "Upload a router of vlroute"
_PREFIX = "vlroute-push-"
_LOG_IN = "log in (hf auth login, or the variable HF_TOKEN)"


def on_hub(router: Source) -> tuple[str, str | None] | None:
    """The repository and revision that `router` names; None if it is a folder."""
    if not isinstance(router, str) or os.path.exists(router):
        return None
    found = _ON_HUB.fullmatch(router)
    return found and (found["repo"], found["revision"])


def router_folder(router: Source, revision: str | None = None, *, local_only: bool = False) -> Path:
    """Find a router artifact. One on the hub is downloaded into the hub cache, unless it is there already.

    Only JSON and safetensors files of the artifact are downloaded, all of one commit. The weights are compared with
    their SHA-256 in router.json. Without a network, the cached files are used.

    Args:
        router: Folder of a router artifact or of a model with `router/`; the name of a router of this package, such as
            "qwen3-vl-2b" or "Qwen/Qwen3-VL-2B"; or "user/name" or "user/name@revision" on the hub. A folder of this
            name comes first, and a `Path` is always a folder.
        revision: Branch, tag or commit on the hub; by default "main".
        local_only: Do not connect to the hub.

    Returns:
        The folder. Its files are not checked if it was not downloaded.

    Raises:
        SettingsError: A revision was passed with a folder, or twice.
        ArtifactError: There is no such folder; or the repository contains no router, or one that this version of
            vlroute cannot read.
        HubError: The repository or revision does not exist, or the token does not permit reading it.
        HubUnavailableError: The hub cannot be reached and the router is not in the local cache.
    """
    if not isinstance(router, str | Path) or not str(router):
        raise refused("router", router, "the folder of a router artifact, or 'user/name' on the hub")
    if not isinstance(revision, str | None) or revision == "":
        raise refused("revision", revision, "a branch, tag or commit of the hub")
    found = on_hub(router)
    if found is None or router in SHIPPED_ROUTERS:
        if revision is not None:
            raise SettingsError(
                f"revision applies to a router on the hub, such as 'user/name'; {str(router)!r} is "
                f"{'a folder' if os.path.isdir(router) else 'neither a folder nor such a name'}"
            )
        return _local_folder(router)
    repo, named = found
    if named is not None and revision is not None:
        raise SettingsError(f"the revision is given twice: {router!r} and revision={revision!r}; leave one out")
    return _download(repo, named or revision, local_only)


def _local_folder(router: Source) -> Path:
    """The folder of an artifact on this machine or in this package."""
    folder = Path(router)
    if not folder.exists() and isinstance(router, str):
        name = SHIPPED_ROUTERS.get(router, f"{router}/router")
        if name.removesuffix("/router") in SHIPPED:
            folder = shipped(name)
    if not folder.is_dir():
        raise ArtifactError(
            f"there is no router {str(router)!r}: expected the folder of a router artifact, 'user/name' on the hub, or "
            f"one of {', '.join(SHIPPED)}"
        )
    return folder if (folder / CARD_FILE).exists() or not (folder / "router").is_dir() else folder / "router"


def _download(repo: str, revision: str | None, local_only: bool) -> Path:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import RemoteEntryNotFoundError

    what = f"load the router {repo}{f'@{revision}' if revision else ''}"

    def fetch(file: str, commit: str | None) -> Path:
        return Path(hf_hub_download(repo, file, revision=commit, local_files_only=local_only))

    with _hub_errors(what, f"there is no folder {repo!r} here, and "):
        try:
            folder = fetch(CARD_FILE, revision).parent
        except RemoteEntryNotFoundError as error:
            raise ArtifactError(
                f"cannot {what}: the repository contains no {CARD_FILE}, so it is no router. Routers are uploaded with "
                "'vlroute push' or Router.push_to_hub"
            ) from error
        commit = folder.name  # all files come from one commit, even if the branch moves on in the meantime
        try:
            fetch(weights_path(folder).name, commit)
            known = try_to_load_from_cache(repo, f"{PROBE_FOLDER}/{CARD_FILE}", revision=commit)
            if known is None or isinstance(known, str):  # otherwise it is known that there is none
                try:
                    probe = fetch(f"{PROBE_FOLDER}/{CARD_FILE}", commit).parent
                except RemoteEntryNotFoundError:
                    pass
                else:
                    fetch(f"{PROBE_FOLDER}/{weights_path(probe).name}", commit)
            read_artifact(folder)
        except RemoteEntryNotFoundError as error:
            raise ArtifactError(
                f"cannot {what}: the repository does not contain the weights that its {CARD_FILE} names; upload the "
                "router again"
            ) from error
        except ArtifactError as error:
            raise ArtifactError(
                f"cannot {what}: {error}. If the download was damaged, delete {folder.parents[1]} and load it again"
            ) from error
    return folder


def save_router(
    folder: str | Path,
    classifier: ComplexityClassifier,
    probe: VisionProbe | None = None,
    *,
    private_vocabulary: bool = False,
    license: str | None = None,
    source: str | None = None,
) -> None:
    """Write an artifact with its model card, README.md, into a folder.

    Args:
        folder: The folder. An artifact in it is replaced, README.md included.
        classifier: The classifier.
        probe: Its vision probe.
        private_vocabulary: Write hashes instead of words, see `ComplexityClassifier.with_hashed_vocabulary`, and leave
            out the vision probe, whose captions cannot be hashed.
        license: License of the artifact, an identifier of the hub such as "apache-2.0", for the model card.
        source: What `router=` has to be to load it, for the model card. By default the name of the folder.

    Raises:
        SettingsError: An argument has a wrong type.
        OutputError: The folder cannot be created or written to, or contains a README.md but no router, or a vision
            probe of another artifact, or another process is writing to it.
        OSError: A file cannot be written.
    """
    if not isinstance(folder, str | Path) or not str(folder):
        raise refused("folder", folder, "a folder")
    if not isinstance(license, str | None):
        raise refused("license", license, "an identifier of the hub, such as 'apache-2.0'")
    folder = Path(folder)
    classifier, probe = as_shared(classifier, probe, private_vocabulary)
    if os.path.lexists(folder / README) and not (folder / CARD_FILE).exists():
        raise OutputError(
            f"{folder} contains something other than a router, and its {README} would be replaced; choose another "
            "folder"
        )
    if probe is None and (folder / PROBE_FOLDER).exists():
        raise OutputError(
            f"{folder / PROBE_FOLDER} exists, but this router is written without a vision probe; choose an empty folder"
        )
    card = model_card(classifier, probe, source or folder.resolve().name, license=license)
    check_outputs(folder / CARD_FILE)
    make_folder(folder)
    if probe is not None:
        probe.save(folder / PROBE_FOLDER)
    classifier.save(folder)
    replace_file(folder / README, card.encode())


def push_router(
    repo: str,
    classifier: ComplexityClassifier,
    probe: VisionProbe | None = None,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str = COMMIT_MESSAGE,
    create_pr: bool = False,
    private_vocabulary: bool = False,
    license: str | None = None,
) -> tuple[CommitInfo, bool]:
    """Upload an artifact with its model card to the hub, in one commit. A warning says which words it reveals.

    The repository is created if it does not exist. Files of an earlier router are replaced, README.md included; other
    files are kept.

    Args:
        repo: "user/name", or "name" for a repository of the owner of the token.
        classifier: The classifier.
        probe: Its vision probe.
        private: Whether a new repository is private; by default as the account is set up.
        token: A token of the hub; by default HF_TOKEN or the one of 'hf auth login'.
        revision: Branch to upload to, created if it does not exist; by default "main".
        commit_message: The message of the commit.
        create_pr: Open a pull request instead of committing to the branch.
        private_vocabulary: See `save_router`.
        license: See `save_router`.

    Returns:
        The commit, with its id in `oid` and the address of the pull request in `pr_url`; and whether it is a new one.
        If the branch already contains these files, it is the latest commit, and no pull request is opened.

    Raises:
        SettingsError: An argument has a wrong type, or both a revision and a pull request were requested.
        HubError: The hub refuses the upload: the token does not permit it, or a value is invalid. Or the repository
            contains something other than a router.
        HubUnavailableError: The hub cannot be reached.
    """
    if not isinstance(repo, str) or not HUB_ID.fullmatch(repo):
        raise refused("repo", repo, "a name on the hub, such as 'user/name'")
    if create_pr and revision is not None:
        raise SettingsError("a pull request goes to the branch main; leave out revision or create_pr")
    from huggingface_hub import HfApi

    what, api = f"upload the router to {repo}", HfApi(token=token)
    draft = TemporaryFolder(_PREFIX)
    try:
        shared = as_shared(classifier, probe, private_vocabulary)
        save_router(draft.path, *shared, license=license, source=repo)  # before anything is created on the hub
        if probe is not None and shared[1] is None:
            log.warning("the vision probe is not uploaded: its captions cannot be hashed")
        log.warning("%s", revealed(repo, vocabulary_of(*shared)))
        with _hub_errors(what):
            url = api.create_repo(repo, private=private, exist_ok=True)
            if url.repo_id != repo:  # the owner was left out, but is needed to load the router
                card = model_card(*shared, url.repo_id, license=license)
                replace_file(draft.path / README, card.encode())
            if revision is not None:
                api.create_branch(url.repo_id, branch=revision, exist_ok=True)
            files = set(api.list_repo_files(url.repo_id, revision=revision))
            if README in files and CARD_FILE not in files and files - _FILES_OF_NEW and not create_pr:
                raise HubError(
                    f"cannot {what}: the repository contains something other than a router, and its {README} would be "
                    "replaced. Choose another repository, or open a pull request (create_pr)"
                )
            latest = api.repo_info(url.repo_id, revision=revision).sha
            commit = api.upload_folder(
                repo_id=url.repo_id, folder_path=draft.path, revision=revision, commit_message=commit_message,
                create_pr=create_pr, delete_patterns=_REPLACED,
            )  # fmt: skip
        if commit.oid == latest:
            log.warning(
                "nothing was uploaded%s: the branch %s of %s already contains this router",
                ", and no pull request was opened" if create_pr else "", revision or "main", url.repo_id,
            )  # fmt: skip
        return commit, commit.oid != latest
    finally:
        draft.remove()


def as_shared(
    classifier: ComplexityClassifier, probe: VisionProbe | None, private_vocabulary: bool
) -> tuple[ComplexityClassifier, VisionProbe | None]:
    """What `save_router` writes: with a private vocabulary, the words are hashed and there is no vision probe."""
    if not isinstance(private_vocabulary, bool):
        raise refused("private_vocabulary", private_vocabulary, "True or False")
    return (classifier.with_hashed_vocabulary(), None) if private_vocabulary else (classifier, probe)


def revealed(where: str, found: Vocabulary) -> str:
    """What everyone can learn about the training requests from an artifact.

    Args:
        where: The repository or folder.
        found: What the artifact contains.

    Returns:
        One or more sentences.
    """
    if found.hashed:
        return (
            f"everyone who can read {where} can test whether a guessed word was in the training requests: the artifact "
            f"contains {found.counts}"
        )
    rare = f". Some of the rarest words: {', '.join(found.rare)}" if found.rare else ""
    return (
        f"everyone who can read {where} can read words of the training requests: the artifact contains "
        f"{found.counts}{rare}. To upload hashes instead: private_vocabulary=True, or vlroute push --private-vocabulary"
    )


@contextmanager
def _hub_errors(what: str, prefix: str = "") -> Iterator[None]:
    """Raise errors of the hub's client as public errors. `what` was attempted; `prefix` begins the reason."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except VLRouteError:
        raise
    except GatedRepoError as error:
        raise HubError(
            f"cannot {what}: access to the repository is restricted. Ask for access on its page, then {_LOG_IN}"
        ) from error
    except RepositoryNotFoundError as error:
        raise HubError(
            f"cannot {what}: {prefix}the hub has no such repository, or it is private and the token does not permit "
            f"reading it. Check the name, or {_LOG_IN}"
        ) from error
    except RevisionNotFoundError as error:
        raise HubError(f"cannot {what}: the repository has no such branch, tag or commit; check revision=") from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        raise HubUnavailableError(
            f"cannot {what}: {prefix}the hub cannot be reached, or HF_HUB_OFFLINE is set, and the files are not in the "
            "local cache. Connect to the network and try again"
        ) from error
    except HfHubHTTPError as error:
        status, why = error.response.status_code, error.server_message or _line(error)
        if status in (401, 403):
            raise HubError(f"cannot {what}: the hub refuses it ({why}); {_LOG_IN} with a token that may") from error
        if status == 429 or status >= 500:
            raise HubUnavailableError(f"cannot {what}: the hub answers {status} ({why}); try again later") from error
        raise HubError(f"cannot {what}: the hub answers {status} ({why})") from error
    except ValueError as error:  # invalid names and metadata
        raise HubError(f"cannot {what}: {_line(error)}") from error
    except Exception as error:  # the classes of network errors depend on the version of the client
        raise HubUnavailableError(
            f"cannot {what}: {type(error).__name__}: {_line(error)}. Check the network and try again"
        ) from error


def _line(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:300]
