"""A Hugging Face Hub on the loopback interface: enough of one for the real client to work against.

Repositories with commits, branches, private and gated ones, large files through LFS, validation of the card's
metadata; and faults: server errors, answers that never come, connections that break off. It speaks HTTP on a port
of its own, so what is tested is the client that users have.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

#: Tokens and whose they are.
TOKENS = {"hf_alice": "alice", "hf_bob": "bob"}

#: Files that go through LFS, as on the Hub.
_LARGE = (".safetensors", ".bin", ".pth")

_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"


@dataclass
class Repo:
    """A repository: its files at every commit, and where its branches are.

    Attributes:
        gated: asks for access, which nobody has.
        fault: ``500`` or another status for every request, ``slow``, or ``drop``.
        fault_on: only requests whose path holds this have the fault.
    """

    private: bool = False
    gated: bool = False
    fault: str = ""
    fault_on: str = ""
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: Mapping[str, bytes | None], branch: str = "main", message: str = "") -> str:
        """Change files (None deletes one); returns the commit's name."""
        content = dict(self.commits.get(self.refs.get(branch) or self.refs.get("main", ""), {}))
        for path, data in files.items():
            content.pop(path, None)
            if data is not None:
                content[path] = data
        name = hashlib.sha1(f"{id(self)} {len(self.commits)}".encode()).hexdigest()
        self.commits[name] = content
        self.refs[branch] = name
        self.messages.append(message)
        return name

    def at(self, revision: str) -> str | None:
        """The commit that a branch or commit name stands for."""
        return self.refs.get(revision) or (revision if revision in self.commits else None)


class Hub:
    """The server and what it holds. ``with Hub() as hub: hub.url``."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.uploads: dict[str, bytes] = {}
        self.log: list[tuple[str, str]] = []
        self.released = Event()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def add(self, repo_id: str, files: Mapping[str, bytes] | None = None, **options: Any) -> Repo:
        """A repository with one commit."""
        self.repos[repo_id] = Repo(**options)
        self.repos[repo_id].commit(files or {".gitattributes": b""})
        return self.repos[repo_id]

    def reset(self) -> None:
        """Forget everything."""
        self.released.set()
        self.released = Event()
        self.repos.clear()
        self.uploads.clear()
        self.log.clear()

    def close(self) -> None:
        """Stop serving."""
        self.released.set()
        self._server.shutdown()
        self._server.server_close()


class _Refusal(Exception):
    def __init__(self, status: int, code: str = "", **headers: str) -> None:
        super().__init__(status, code)
        self.status = status
        self.headers = {**headers, **({"X-Error-Code": code, "X-Error-Message": code} if code else {})}


class _Handler(BaseHTTPRequestHandler):
    """One request; ``hub`` is set by the server."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        path, query = unquote(parts.path), parse_qs(parts.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.log.append((self.command, path))
        try:
            for method, pattern, verb in _ROUTES:
                match = re.fullmatch(pattern, path)
                if method == self.command and match is not None:
                    self._fault(path)
                    verb(self, query=query, **match.groupdict())
                    return
            raise _Refusal(404, "RepoNotFound")
        except _Refusal as refusal:
            self._send(refusal.status, b"{}", **refusal.headers)
        except ConnectionAbortedError:
            self.close_connection = True

    def _fault(self, path: str) -> None:
        for name, repo in self.hub.repos.items():
            if repo.fault and f"/{name}" in path and repo.fault_on in path:
                if repo.fault == "drop":
                    raise ConnectionAbortedError
                if repo.fault == "slow":
                    self.hub.released.wait(10)
                    raise ConnectionAbortedError
                raise _Refusal(int(repo.fault))

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, content: Any, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), **{"Content-Type": "application/json"})

    @property
    def _user(self) -> str | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in TOKENS:
            raise _Refusal(401)
        return TOKENS.get(token)

    def _repo(self, name: str) -> Repo:
        """The repository, if the user may see it."""
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and self._user != name.split("/")[0]):
            raise _Refusal(404 if self._user else 401, "RepoNotFound")
        return repo

    def _writable(self, name: str) -> Repo:
        repo = self._repo(name)
        if self._user != name.split("/")[0]:
            raise _Refusal(403 if self._user else 401)
        return repo

    def _commit_of(self, repo: Repo, revision: str | None) -> str:
        commit = repo.at(revision or "main")
        if commit is None:
            raise _Refusal(404, "RevisionNotFound")
        return commit

    def info(self, repo: str, query: Any, revision: str | None = None) -> None:
        found = self._repo(repo)
        self._json(self._about(repo, found, self._commit_of(found, revision)))

    def _about(self, name: str, repo: Repo, commit: str) -> dict[str, Any]:
        card = repo.commits[commit].get("README.md", b"").decode()
        meta = yaml.safe_load(card.split("---\n")[1]) if card.startswith("---\n") else {}
        tags = [*meta.get("tags", []), *([f"base_model:{meta['base_model']}"] if "base_model" in meta else [])]
        siblings = [{"rfilename": path} for path in repo.commits[commit]]
        return {"id": name, "sha": commit, "private": repo.private, "tags": tags, "siblings": siblings, "downloads": 7}

    def search(self, query: Any) -> None:
        wanted = set(query.get("filter", []))
        author = query.get("author", [None])[0]
        shown = []
        for name, repo in self.hub.repos.items():
            about = self._about(name, repo, repo.refs["main"])
            visible = not repo.private or self._user == name.split("/")[0]
            if visible and wanted <= set(about["tags"]) and author in (None, name.split("/")[0]):
                shown.append(about)
        self._json(shown)

    def tree(self, repo: str, revision: str, query: Any, folder: str | None = None) -> None:
        found = self._repo(repo)
        files = found.commits[self._commit_of(found, revision)]
        inside = {path: data for path, data in files.items() if path.startswith(folder or "")}
        if folder and not inside:
            raise _Refusal(404, "EntryNotFound")
        self._json([{"type": "file", "path": p, "size": len(d), "oid": _git_hash(d)} for p, d in inside.items()])

    def resolve(self, repo: str, revision: str, file: str, query: Any) -> None:
        found = self._repo(repo)
        if found.gated:
            raise _Refusal(403, "GatedRepo")
        commit = self._commit_of(found, revision)
        data = found.commits[commit].get(file)
        if data is None:
            raise _Refusal(404, "EntryNotFound", **{"X-Repo-Commit": commit})
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_git_hash(data)}"', "Accept-Ranges": "bytes"}
        if file.endswith(_LARGE):
            headers |= {"X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Linked-Size": str(len(data))}
        self._send(200, data, **headers)

    def create(self, query: Any) -> None:
        asked = json.loads(self.body)
        user = self._user
        name = f"{asked.get('organization') or user}/{asked['name']}"
        if user is None:
            raise _Refusal(401)
        if name in self.hub.repos:
            self._json({"url": f"{self.hub.url}/{name}", "error": "You already created this model repo"}, 409)
            return
        if name.split("/")[0] != user:
            raise _Refusal(403)
        self.hub.add(name, private=asked.get("visibility") == "private" or bool(asked.get("private")))
        self._json({"url": f"{self.hub.url}/{name}"})

    def branch(self, repo: str, revision: str, query: Any) -> None:
        found = self._writable(repo)
        if revision in found.refs:
            self._json({"error": "exists"}, 409)
            return
        found.refs[revision] = found.refs["main"]
        self._json({})

    def validate(self, query: Any) -> None:
        text = json.loads(self.body)["content"]
        try:
            base = yaml.safe_load(text.split("---\n")[1]).get("base_model", "a/b")
        except (yaml.YAMLError, IndexError, AttributeError):
            base = "no metadata"
        wrong = re.fullmatch(_REPO, base) is None
        errors = [{"message": f'"base_model" with value "{base}" is not valid'}] if wrong else []
        self._json({"errors": errors, "warnings": []}, 400 if wrong else 200)

    def preupload(self, repo: str, revision: str, query: Any) -> None:
        found = self._repo(repo) if query.get("create_pr") else self._writable(repo)
        self._commit_of(found, revision)
        files = json.loads(self.body)["files"]
        modes = {True: "lfs", False: "regular"}
        answer = [
            {"path": f["path"], "uploadMode": modes[f["path"].endswith(_LARGE)], "shouldIgnore": False} for f in files
        ]
        self._json({"files": answer})

    def batch(self, repo: str, query: Any) -> None:
        objects = []
        for item in json.loads(self.body)["objects"]:
            actions = {kind: {"href": f"{self.hub.url}/lfs/{kind}/{item['oid']}"} for kind in ("upload", "verify")}
            objects.append({**item, "actions": actions})
        self._json({"transfer": "basic", "objects": objects})

    def upload(self, oid: str, query: Any) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Refusal(400)
        self.hub.uploads[oid] = self.body
        self._json({})

    def verify(self, oid: str, query: Any) -> None:
        if len(self.hub.uploads.get(oid, b"")) != json.loads(self.body)["size"]:
            raise _Refusal(400)
        self._json({})

    def commit(self, repo: str, revision: str, query: Any) -> None:
        pull_request = bool(query.get("create_pr"))
        found = self._repo(repo) if pull_request else self._writable(repo)
        if self._user is None:
            raise _Refusal(401)
        files: dict[str, bytes | None] = {}
        message = ""
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploads[value["oid"]]
            elif item["key"] == "deletedFile":
                files[value["path"]] = None
        branch = f"refs/pr/{len(found.commits)}" if pull_request else revision
        found.refs.setdefault(branch, found.refs["main"])
        name = found.commit(files, branch, message)
        answer = {"success": True, "commitOid": name, "commitUrl": f"{self.hub.url}/{repo}/commit/{name}"}
        if pull_request:
            answer["pullRequestUrl"] = f"{self.hub.url}/{repo}/discussions/{branch.rpartition('/')[2]}"
        self._json(answer)


def _git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


_ROUTES: list[tuple[str, str, Any]] = [
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.validate),
    ("GET", r"/api/models", _Handler.search),
    ("GET", rf"/api/models/{_REPO}", _Handler.info),
    ("GET", rf"/api/models/{_REPO}/revision/(?P<revision>.+)", _Handler.info),
    ("GET", rf"/api/models/{_REPO}/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?", _Handler.tree),
    ("POST", rf"/api/models/{_REPO}/branch/(?P<revision>.+)", _Handler.branch),
    ("POST", rf"/api/models/{_REPO}/preupload/(?P<revision>.+)", _Handler.preupload),
    ("POST", rf"/api/models/{_REPO}/commit/(?P<revision>.+)", _Handler.commit),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", r"/lfs/upload/(?P<oid>[0-9a-f]{64})", _Handler.upload),
    ("POST", r"/lfs/verify/(?P<oid>[0-9a-f]{64})", _Handler.verify),
    ("HEAD", rf"/{_REPO}/resolve/(?P<revision>(refs/pr/)?[^/]+)/(?P<file>.+)", _Handler.resolve),
    ("GET", rf"/{_REPO}/resolve/(?P<revision>(refs/pr/)?[^/]+)/(?P<file>.+)", _Handler.resolve),
]
