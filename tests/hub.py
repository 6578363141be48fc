"""A model hub on loopback that speaks the protocol of the hub's client: git files, LFS, branches, pull requests."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml

#: Tokens and their owners; the second one may only read.
WRITE, READ, OTHER = "hf_writes", "hf_reads", "hf_of_another"
OWNERS = {WRITE: "user", READ: "user", OTHER: "other"}


@dataclass(frozen=True)
class Blob:
    data: bytes
    lfs: bool

    @property
    def etag(self) -> str:
        """SHA-256 of a file in LFS, otherwise the object id of git."""
        if self.lfs:
            return hashlib.sha256(self.data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data, usedforsecurity=False).hexdigest()


@dataclass
class Repo:
    name: str
    private: bool = False
    gated: bool = False
    #: Files of each commit, and the commit of each branch, tag and pull request.
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    #: Content that was uploaded to LFS.
    large: dict[str, bytes] = field(default_factory=dict)

    def commit(self, ref: str, files: dict[str, Blob], message: str = "") -> str:
        content = json.dumps([len(self.commits), message, sorted((name, one.etag) for name, one in files.items())])
        sha = hashlib.sha1(content.encode(), usedforsecurity=False).hexdigest()
        self.commits[sha], self.refs[ref], self.messages[sha] = files, sha, message
        return sha

    def put(self, path: str, data: bytes | None, ref: str = "main") -> str:
        """Commit one file as it is, or its removal."""
        files = dict(self.files(ref))
        files.pop(path, None)
        if data is not None:
            files[path] = Blob(data, path.endswith(".safetensors"))
        return self.commit(ref, files)

    def files(self, ref: str = "main") -> dict[str, Blob]:
        return self.commits[self.refs.get(ref, ref)]


class Refused(Exception):
    """An answer with an error."""

    def __init__(self, status: int, code: str = "", message: str = "", **body: Any) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.body = status, code, message, body


class Hub:
    """The hub and, on another port, its storage of large files, which must never receive a token."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        #: Method and path of each request, in order.
        self.requests: list[str] = []
        #: Called before each request with its method and path; may raise `Refused`.
        self.before: Callable[[str, str], None] = lambda method, path: None
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), self._handler(kind)) for kind in ("hub", "storage")]
        self.url, self.storage = (f"http://127.0.0.1:{one.server_address[1]}" for one in self._servers)
        self._threads = [threading.Thread(target=one.serve_forever, args=(0.05,)) for one in self._servers]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()

    def _handler(self, kind: str) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                where = urlsplit(self.path)
                path, query = unquote(where.path), parse_qs(where.query)
                token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
                hub.requests.append(f"{self.command} {path}")
                try:
                    hub.before(self.command, path)
                    reply = (hub.serve if kind == "hub" else hub.store)(self.command, path, query, token, body)
                except Refused as refused:
                    head = {"X-Error-Code": refused.code, "X-Error-Message": refused.message}
                    reply = refused.status, {k: v for k, v in head.items() if v}, json.dumps(refused.body).encode()
                status, headers, data = reply
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), "Connection": "close", **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_GET = do_HEAD = do_POST = do_PUT = answer

            def log_message(self, *_: Any) -> None:
                pass

        return Handler

    Reply = tuple[int, dict[str, str], bytes]

    def serve(self, method: str, path: str, query: dict[str, list[str]], token: str, body: bytes) -> Reply:
        if token and token not in OWNERS:
            raise Refused(401, message="Invalid credentials in Authorization header")
        for pattern, answer in _ROUTES:
            if found := re.fullmatch(pattern, f"{method} {path}"):
                return answer(self, token, body, query, **found.groupdict())
        raise Refused(404, message=f"no route for {method} {path}")

    def store(self, method: str, path: str, query: dict[str, list[str]], token: str, body: bytes) -> Reply:
        assert not token, "the token was sent to the storage"
        name, _, oid = path[1:].rpartition("/")
        if method == "PUT":
            assert hashlib.sha256(body).hexdigest() == oid
            self.repos[name].large[oid] = body
            return 200, {}, b""
        return 200, {"ETag": f'"{oid}"'}, self.repos[name].large[oid]

    def readable(self, name: str, token: str) -> Repo:
        found = self.repos.get(name)
        if found is None or (found.private and OWNERS.get(token) != name.partition("/")[0]):
            raise Refused(404 if token else 401, "RepoNotFound", "Repository not found")
        if found.gated and OWNERS.get(token) != name.partition("/")[0]:
            raise Refused(403 if token else 401, "GatedRepo", f"Access to model {name} is restricted")
        return found

    def writable(self, name: str, token: str, pull_request: bool = False) -> Repo:
        found = self.readable(name, token)
        if not token or token == READ or (OWNERS[token] != name.partition("/")[0] and not pull_request):
            raise Refused(403 if token else 401, "", "Forbidden: pass a token with write access")
        return found

    # the routes

    def create(self, token: str, body: bytes, query: Any) -> Reply:
        asked = json.loads(body)
        owner = asked["organization"] or OWNERS.get(token, "")
        name = f"{owner}/{asked['name']}"
        if not token:
            raise Refused(401, "", "Invalid username or password")
        if name in self.repos and OWNERS[token] == owner:
            raise Refused(409, "", "You already created this model repo", url=f"{self.url}/{name}")
        if token == READ or OWNERS[token] != owner:
            raise Refused(403, "", f"You do not have the rights to create a model under the namespace {owner!r}")
        repo = self.repos[name] = Repo(name, private=asked.get("visibility") == "private" or bool(asked.get("private")))
        repo.commit("main", {".gitattributes": Blob(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n", False)})
        return self._json({"url": f"{self.url}/{name}", "name": name})

    def validate(self, token: str, body: bytes, query: Any) -> Reply:
        try:
            fence, metadata, _ = json.loads(body)["content"].split("---\n", 2)
            read = yaml.safe_load(metadata)
            assert not fence
            assert isinstance(read["tags"], list)
            assert re.fullmatch(r"[a-z0-9.-]+", read.get("license", "mit")), f"{read['license']!r} is no license"
        except Exception as error:
            raise Refused(400, errors=[{"message": str(error)}], warnings=[]) from error
        return self._json({"errors": [], "warnings": []})

    def info(self, token: str, body: bytes, query: Any, repo: str, ref: str = "main") -> Reply:
        found = self.readable(repo, token)
        sha, files = self._at(found, ref)
        listed = [{"rfilename": name} for name in sorted(files)]
        return self._json({"id": repo, "sha": sha, "private": found.private, "siblings": listed, "tags": []})

    def tree(self, token: str, body: bytes, query: Any, repo: str, ref: str) -> Reply:
        _, files = self._at(self.readable(repo, token), ref)
        rows = [
            {"type": "file", "path": name, "size": len(one.data), "oid": one.etag}
            | ({"lfs": {"oid": one.etag, "size": len(one.data), "pointerSize": 130}} if one.lfs else {})
            for name, one in sorted(files.items())
        ]
        return self._json(rows)

    def branch(self, token: str, body: bytes, query: Any, repo: str, ref: str) -> Reply:
        found = self.writable(repo, token)
        if ref in found.refs:
            raise Refused(409, "", "Reference already exists")
        found.refs[ref] = found.refs["main"]
        return self._json({})

    def preupload(self, token: str, body: bytes, query: Any, repo: str, ref: str) -> Reply:
        found = self.writable(repo, token, "create_pr" in query)
        _, files = self._at(found, ref)
        rows = [
            {
                "path": one["path"], "shouldIgnore": False,
                "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                "oid": files[one["path"]].etag if one["path"] in files else None,
            }
            for one in json.loads(body)["files"]
        ]  # fmt: skip
        return self._json({"files": rows})

    def batch(self, token: str, body: bytes, query: Any, repo: str) -> Reply:
        found = self.readable(repo, token)
        asked = json.loads(body)
        assert asked["operation"] == "upload"
        assert "basic" in asked["transfers"]
        rows = []
        for one in asked["objects"]:
            row = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in found.large:
                upload = {"href": f"{self.storage}/{repo}/{one['oid']}"}
                row["actions"] = {"upload": upload, "verify": {"href": f"{self.url}/{repo}.git/info/lfs/verify"}}
            rows.append(row)
        return self._json({"transfer": "basic", "objects": rows})

    def verify(self, token: str, body: bytes, query: Any, repo: str) -> Reply:
        asked = json.loads(body)
        assert len(self.repos[repo].large[asked["oid"]]) == asked["size"]
        return self._json({})

    def commit(self, token: str, body: bytes, query: Any, repo: str, ref: str) -> Reply:
        found = self.writable(repo, token, "create_pr" in query)
        files = dict(self._at(found, ref)[1])
        message = ""
        for line in body.splitlines():
            one = json.loads(line)
            value = one["value"]
            match one["key"]:
                case "header":
                    message = value["summary"]
                case "file":
                    files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
                case "lfsFile":
                    files[value["path"]] = Blob(found.large[value["oid"]], True)
                case "deletedFile":
                    del files[value["path"]]
                case other:
                    raise AssertionError(other)
        pull = f"refs/pr/{1 + sum(name.startswith('refs/pr/') for name in found.refs)}" if "create_pr" in query else ""
        sha = found.commit(pull or ref, files, message)
        reply = {"commitUrl": f"{self.url}/{repo}/commit/{sha}", "commitOid": sha, "success": True}
        if pull:
            reply["pullRequestUrl"] = f"{self.url}/{repo}/discussions/{pull.rpartition('/')[2]}"
        return self._json(reply)

    def resolve(self, token: str, body: bytes, query: Any, repo: str, ref: str, file: str) -> Reply:
        found = self.readable(repo, token)
        sha, files = self._at(found, ref)
        head = {"X-Repo-Commit": sha}
        if file not in files:
            return 404, {**head, "X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}, b""
        one = files[file]
        if not one.lfs:
            return 200, {**head, "ETag": f'"{one.etag}"'}, one.data
        found.large.setdefault(one.etag, one.data)
        linked = {"X-Linked-ETag": f'"{one.etag}"', "X-Linked-Size": str(len(one.data))}
        return 302, {**head, **linked, "Location": f"{self.storage}/{repo}/{one.etag}"}, b""

    def _at(self, repo: Repo, ref: str) -> tuple[str, dict[str, Blob]]:
        sha = repo.refs.get(ref, ref)
        if sha not in repo.commits:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {ref}")
        return sha, repo.commits[sha]

    @staticmethod
    def _json(value: Any) -> Reply:
        return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


_REPO, _REF = r"(?P<repo>[^/]+/[^/]+)", r"(?P<ref>(?:refs/pr/)?[^/]+)"
_ROUTES: list[tuple[str, Callable[..., Hub.Reply]]] = [
    (r"POST /api/repos/create", Hub.create),
    (r"POST /api/validate-yaml", Hub.validate),
    (rf"GET /api/models/{_REPO}", Hub.info),
    (rf"GET /api/models/{_REPO}/revision/{_REF}", Hub.info),
    (rf"GET /api/models/{_REPO}/tree/{_REF}", Hub.tree),
    (rf"POST /api/models/{_REPO}/branch/{_REF}", Hub.branch),
    (rf"POST /api/models/{_REPO}/preupload/{_REF}", Hub.preupload),
    (rf"POST /api/models/{_REPO}/commit/{_REF}", Hub.commit),
    (rf"POST /{_REPO}\.git/info/lfs/objects/batch", Hub.batch),
    (rf"POST /{_REPO}\.git/info/lfs/verify", Hub.verify),
    (rf"(?:GET|HEAD) /{_REPO}/resolve/{_REF}/(?P<file>.+)", Hub.resolve),
]


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that is closed at the end."""
    hub = Hub()
    try:
        yield hub
    finally:
        hub.close()


def connect(monkeypatch: pytest.MonkeyPatch, url: str, cache: Any, token: str | None = WRITE) -> None:
    """Let the hub's client in this process use a hub, an own cache and a token."""
    constants = "huggingface_hub.constants"
    monkeypatch.setattr(f"{constants}.ENDPOINT", url)
    monkeypatch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(f"{constants}.HF_TOKEN_PATH", str(cache) + "-token")
    # the protocol of Xet is a compiled client of its own; without it, large files go through LFS
    monkeypatch.setattr(f"{constants}.HF_HUB_DISABLE_XET", True)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
