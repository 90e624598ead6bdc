"""A small Hub for datasets on 127.0.0.1: what `huggingface_hub` and `datasets` call to create, push, look and load.

Repositories, branches, pull requests, LFS, commits as NDJSON, trees, files with ranges, tokens with roles; everything
in memory, every commit kept, so that tests can look at what a reader would have seen at any moment. Faults hit the
requests whose method and path match them. Clients need HF_ENDPOINT and HF_HUB_DISABLE_XET=1; with `has_xet` it offers Xet
as the real Hub does, to storage under /_cas that answers nothing.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
import os
import re
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote

import yaml
from fastapi import Request
from fastapi.responses import JSONResponse, Response

from .http_server import FaultyServer, _connection, _CutResponse
from .hub_rules import card_errors


LFS_PATTERNS = (".parquet", ".arrow", ".bin", ".zst", ".gz", ".zip", ".safetensors")
LFS_FROM = 10 << 20
REPO = r"(?:api/)?datasets/([\w.-]+/[\w.-]+?)"


@dataclass
class HubFault:
    """What goes wrong with the first `times` requests after `skip` whose "METHOD path" matches.

    `kind`: "status" (answer with `status`), "late" (do it, then answer with `status`), "cut" (break the connection
    while the body arrives), "reset" (break it at once), "checksum" (say that the bytes are not what was announced),
    "hang" (take the connection and never answer; the body is not read).
    """

    kind: str
    match: str
    times: int = 1
    skip: int = 0
    status: int = 500
    retry_after: float | None = None
    hit: int = 0

    def hits(self, what: str) -> bool:
        """Whether it hits this request; counts it."""
        if not re.search(self.match, what):
            return False
        self.hit += 1
        return self.skip < self.hit <= self.skip + self.times


@dataclass
class File:
    """A file of a commit: its size, its git id, and the sha256 of its LFS object if it is one."""

    size: int
    oid: str
    sha256: str | None = None


@dataclass
class Commit:
    """A state of a branch."""

    oid: str
    parent: str | None
    files: dict[str, File]
    title: str = ""
    num_operations: int = 0
    num_bytes: int = 0


@dataclass
class Repo:
    """A dataset repository; `refs` holds the history of each branch and pull request, oldest first."""

    name: str
    private: bool = False
    gated: Any = False
    refs: dict[str, list[Commit]] = field(default_factory=dict)
    num_prs: int = 0

    def find(self, revision: str) -> Commit | None:
        """Return the commit of a branch, a pull request, or a commit id."""
        revision = unquote(revision)
        if revision in self.refs:
            return self.refs[revision][-1]
        return next((c for history in self.refs.values() for c in history if c.oid == revision), None)


class HubServer(FaultyServer):
    """The Hub. `tokens`: token to (user, role); "write" may create and push in the user's namespace and `orgs`."""

    def __init__(
        self, *, tokens: dict[str, tuple[str, str]] | None = None, orgs: tuple[str, ...] = (), **options: Any
    ) -> None:
        super().__init__(**options)
        self.tokens = tokens if tokens is not None else {"hf_testtoken0123456789": ("me", "write")}
        self.orgs = orgs
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.blobs: dict[str, bytes] = {}
        self.has_xet = False
        self.hub_faults: list[HubFault] = []
        self.uploads: Counter[str] = Counter()
        self.requests: list[tuple[str, str, bool]] = []
        self.posted: list[bytes] = []
        self._guard = threading.RLock()
        self._serial = 0
        self._salt = os.urandom(8).hex()  # clients cache by commit: no two servers have the same

        @self.app.api_route("/{path:path}", methods=["GET", "HEAD", "POST", "PUT", "DELETE"])
        async def everything(path: str, request: Request) -> Response:
            return await self._serve_request(path, request)

    # What tests look at

    def history(self, repo: str, ref: str = "main") -> list[Commit]:
        """Return a branch's commits, oldest first."""
        return list(self.repos[repo].refs[ref])

    def read(self, repo: str, path: str, commit: Commit | None = None) -> bytes:
        """Return a file's bytes."""
        found = (commit or self.history(repo)[-1]).files[path]
        return self.objects[found.sha256] if found.sha256 else self.blobs[found.oid]

    def metadata(self, repo: str, commit: Commit | None = None) -> dict[str, Any]:
        """Return the YAML of a commit's card, {} where there is none."""
        commit = commit or self.history(repo)[-1]
        if "README.md" not in commit.files:
            return {}
        found = re.match(r"---\n(.*?)\n---", self.read(repo, "README.md", commit).decode(), re.DOTALL)
        return yaml.safe_load(found[1]) if found else {}

    # Requests

    async def _serve_request(self, path: str, request: Request) -> Response:
        what = f"{request.method} /{path}"
        self.requests.append((request.method, f"/{path}", "authorization" in request.headers))
        fault = next((f for f in self.hub_faults if f.hits(what)), None)
        if fault is not None and fault.kind == "reset":
            self._abort(_connection(request))
            return Response(status_code=500)
        if fault is not None and fault.kind == "hang":
            await asyncio.sleep(3600)
        if path.startswith("_cas"):
            await asyncio.sleep(3600)
        if fault is not None and fault.kind == "cut":
            async for _ in request.stream():
                break
            self._abort(_connection(request))
            return Response(status_code=500)
        body = await request.body()
        if request.method in ("POST", "PUT"):
            self.posted.append(body)
        if fault is not None and fault.kind == "status":
            headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
            return JSONResponse({"error": f"ordered {fault.status}"}, fault.status, headers)
        if fault is not None and fault.kind == "checksum":
            return JSONResponse({"error": "the content does not match its sha256"}, 422)
        with self._guard:
            response = self._route(request, f"{request.method} {path}", path, body)
        if fault is not None and fault.kind == "late":
            return JSONResponse({"error": f"ordered {fault.status}"}, fault.status)
        if fault is not None and fault.kind == "half":
            content = bytes(response.body)
            return _CutResponse(content[: len(content) // 2], len(content), lambda: self._abort(_connection(request)))
        return response

    def _route(self, request: Request, what: str, path: str, body: bytes) -> Response:
        user, role = self.tokens.get(request.headers.get("authorization", "").removeprefix("Bearer "), (None, "none"))
        if "authorization" in request.headers and user is None:
            return _error(401, "Invalid credentials in Authorization header")
        if what == "GET api/whoami-v2":
            return JSONResponse(self._whoami(user, role)) if user else _error(401, "not logged in")
        if what == "POST api/repos/create":
            return self._create(json.loads(body), user, role)
        if what == "POST api/validate-yaml":
            return JSONResponse(card_errors(json.loads(body)))
        found = re.fullmatch(r"PUT _lfs/(\w+)", what)
        if found:
            return self._store(found[1], body)
        found = re.fullmatch(rf"\w+ {REPO}(?:\.git)?(?:/(.*))?", what)
        if not found:
            return _error(404, "no such address")
        repo = self.repos.get(found[1])
        if repo is None or (repo.private and not self._may_write(repo.name, user, "write")):
            return _error(404, "Repository Not Found", "RepoNotFound")
        rest = found[2] or ""
        if request.method in ("POST", "PUT") and not rest.startswith("paths-info"):
            if user is None:
                return _error(401, "Unauthorized")
            if not self._may_write(repo.name, user, role) and "create_pr=1" not in str(request.url.query):
                return _error(403, "Forbidden: pass a token with the right to write")
        return self._in_repo(repo, request, rest, body)

    def _whoami(self, user: str | None, role: str) -> dict[str, Any]:
        orgs = [{"name": name, "type": "org", "roleInOrg": "write"} for name in self.orgs]
        return {
            "type": "user",
            "name": user,
            "orgs": orgs,
            "auth": {"accessToken": {"displayName": "t", "role": role}},
        }

    def _may_write(self, name: str, user: str | None, role: str) -> bool:
        return role == "write" and user is not None and name.partition("/")[0] in (user, *self.orgs)

    def _create(self, given: dict[str, Any], user: str | None, role: str) -> Response:
        if user is None:
            return _error(401, "Unauthorized")
        name = f"{given.get('organization') or user}/{given['name']}"
        if not self._may_write(name, user, role):
            return _error(403, "Forbidden: you don't have the rights to create a dataset there")
        url = f"{self.url}/datasets/{name}"
        if name in self.repos:
            return JSONResponse({"error": "You already created this dataset repo", "url": url}, 409)
        private = given.get("visibility") == "private" or bool(given.get("private"))
        self.repos[name] = repo = Repo(name, private)
        attributes = "".join(f"*{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_PATTERNS)
        repo.refs["main"] = []
        self._commit(repo, "main", {".gitattributes": self._blob(attributes.encode())}, "initial commit", 1, 0)
        return JSONResponse({"url": url, "name": name, "id": name})

    def _blob(self, content: bytes) -> File:
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        self.blobs[oid] = content
        return File(len(content), oid)

    def _commit(self, repo: Repo, ref: str, files: dict[str, File], title: str, operations: int, size: int) -> Commit:
        self._serial += 1
        history = repo.refs[ref]
        oid = hashlib.sha1(f"{self._salt} {repo.name} {ref} {self._serial}".encode()).hexdigest()
        history.append(Commit(oid, history[-1].oid if history else None, files, title, operations, size))
        return history[-1]

    def _store(self, oid: str, body: bytes) -> Response:
        if hashlib.sha256(body).hexdigest() != oid:
            return _error(422, "the content does not match its sha256")
        self.uploads[oid] += 1
        self.objects[oid] = body
        return Response(status_code=200)

    def _in_repo(self, repo: Repo, request: Request, rest: str, body: bytes) -> Response:
        head, _, tail = rest.partition("/")
        query = parse_qs(str(request.url.query))
        if rest == "" or head == "revision":
            return self._info(repo, tail or "main")
        if head == "refs":
            return JSONResponse(
                {
                    "branches": [
                        {"name": n, "ref": f"refs/heads/{n}", "targetCommit": h[-1].oid}
                        for n, h in repo.refs.items()
                        if not n.startswith("refs/")
                    ],
                    "tags": [],
                    "converts": [],
                }
            )
        if head == "branch":
            return self._branch(repo, unquote(tail), json.loads(body or b"{}"))
        if head == "settings":
            given = json.loads(body)
            repo.gated = given.get("gated", repo.gated)
            repo.private = given.get("private", repo.private)
            return JSONResponse({"gated": repo.gated, "private": repo.private})
        if head == "info":
            return self._batch(json.loads(body))
        if head.startswith("xet-"):
            return self._xet_token()
        if head == "resolve":
            return self._resolve(repo, request, tail)
        revision, _, path = tail.partition("/")
        commit = repo.find(revision)
        if commit is None:
            return _error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        if head == "tree":
            return self._tree(
                commit, unquote(path), "recursive" in query and query["recursive"][0] in ("true", "True", "1")
            )
        if head == "paths-info":
            return JSONResponse([_entry(p, commit.files[p]) for p in _paths(request, body) if p in commit.files])
        if head == "preupload":
            return JSONResponse({"files": [_mode(f) for f in json.loads(body)["files"]]})
        if head == "commit":
            return self._take_commit(repo, unquote(revision), commit, body, "create_pr" in query)
        return _error(404, "no such address")

    def _info(self, repo: Repo, revision: str) -> Response:
        commit = repo.find(revision)
        if commit is None:
            return _error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return JSONResponse(
            {
                "id": repo.name,
                "_id": "0" * 24,
                "author": repo.name.partition("/")[0],
                "sha": commit.oid,
                "private": repo.private,
                "gated": repo.gated,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "lastModified": "2026-01-01T00:00:00.000Z",
                "createdAt": "2026-01-01T00:00:00.000Z",
                "cardData": self.metadata(repo.name, commit),
                "siblings": [{"rfilename": path} for path in sorted(commit.files)],
            }
        )

    def _branch(self, repo: Repo, name: str, given: dict[str, Any]) -> Response:
        if name in repo.refs:
            return _error(409, "Reference already exists")
        start = repo.find(given.get("startingPoint", "main"))
        repo.refs[name] = [start] if start else []
        return JSONResponse({})

    def _batch(self, given: dict[str, Any]) -> Response:
        objects = []
        for wanted in given["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.objects:
                entry["actions"] = {"upload": {"href": f"{self.url}/_lfs/{wanted['oid']}", "header": {}}}
            objects.append(entry)
        is_xet = self.has_xet and "xet" in given.get("transfers", ())
        return JSONResponse({"transfer": "xet" if is_xet else "basic", "objects": objects})

    def _xet_token(self) -> Response:
        token = {"casUrl": f"{self.url}/_cas", "accessToken": "t", "exp": int(time.time()) + 3600}
        headers = {"X-Xet-Cas-Url": token["casUrl"], "X-Xet-Access-Token": "t", "X-Xet-Token-Expiration": token["exp"]}
        return JSONResponse(token, headers={name: str(value) for name, value in headers.items()})

    def _tree(self, commit: Commit, under: str, recursive: bool) -> Response:
        prefix = f"{under}/" if under else ""
        entries: dict[str, Any] = {}
        for path, file in sorted(commit.files.items()):
            if not path.startswith(prefix):
                continue
            name, slash, _ = path.removeprefix(prefix).partition("/")
            if slash and not recursive:
                entries[prefix + name] = {"type": "directory", "oid": "0" * 40, "size": 0, "path": prefix + name}
            else:
                entries[path] = _entry(path, file)
        if under and not entries:
            return _error(404, f"{under} does not exist", "EntryNotFound")
        return JSONResponse(list(entries.values()))

    def _resolve(self, repo: Repo, request: Request, tail: str) -> Response:
        names = sorted([*repo.refs, *(c.oid for h in repo.refs.values() for c in h)], key=len, reverse=True)
        plain = unquote(tail)
        revision = next((n for n in names if plain.startswith(f"{n}/")), None)
        commit = repo.find(revision) if revision else None
        if revision is None or commit is None:
            return _error(404, "Invalid rev id", "RevisionNotFound")
        path = plain.removeprefix(f"{revision}/")
        headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        file = commit.files.get(path)
        if file is None:
            return Response(status_code=404, headers={**headers, "X-Error-Code": "EntryNotFound"})
        content = self.objects[file.sha256] if file.sha256 else self.blobs[file.oid]
        headers |= {"ETag": f'"{file.sha256 or file.oid}"'}
        if file.sha256:
            headers |= {"X-Linked-Size": str(file.size), "X-Linked-Etag": f'"{file.sha256}"'}
        if file.sha256 and self.has_xet:
            headers |= {
                "X-Xet-Hash": file.sha256,
                "X-Xet-Refresh-Route": f"/api/datasets/{repo.name}/xet-read-token/main",
            }
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
        status = 200
        if wanted and request.method == "GET":
            start = int(wanted[1]) if wanted[1] else max(0, len(content) - int(wanted[2]))
            end = min(int(wanted[2]) if wanted[1] and wanted[2] else len(content) - 1, len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            content, status = content[start : end + 1], 206
        if request.method == "HEAD":
            return Response(status_code=200, headers={**headers, "Content-Length": str(file.size)})
        return Response(content, status, headers, media_type="application/octet-stream")

    def _take_commit(self, repo: Repo, revision: str, at: Commit, body: bytes, create_pr: bool) -> Response:
        lines = [json.loads(line) for line in body.decode().splitlines() if line.strip()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        parent = header.get("parentCommit")
        if parent and parent != at.oid:
            return _error(412, "A commit has happened since. Please refresh and try again.")
        files, size = dict(at.files), 0
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                try:
                    content = base64.b64decode(value["content"], validate=True)
                except binascii.Error:
                    return _error(400, "no base64")
                files[value["path"]] = self._blob(content)
                size += len(content)
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.objects:
                    return _error(400, "LFS pointer pointed to a file that does not exist")
                pointer = f"oid sha256:{value['oid']} size {value['size']}".encode()
                files[value["path"]] = File(value["size"], hashlib.sha1(pointer).hexdigest(), value["oid"])
            elif line["key"] == "deletedFile":
                if files.pop(value["path"], None) is None:
                    return _error(404, f"{value['path']} does not exist", "EntryNotFound")
            elif line["key"] == "deletedFolder":
                files = {p: f for p, f in files.items() if not p.startswith(value["path"].rstrip("/") + "/")}
        if "README.md" in files:
            text = self.blobs[files["README.md"].oid].decode()
            if card_errors({"content": text, "repoType": "dataset"})["errors"]:
                return _error(400, "the card's metadata is not valid")
        answer: dict[str, Any] = {"success": True}
        if create_pr:
            repo.num_prs += 1
            revision = f"refs/pr/{repo.num_prs}"
            repo.refs[revision] = [at]
            answer |= {"pullRequestUrl": f"{self.url}/datasets/{repo.name}/discussions/{repo.num_prs}"}
        if revision not in repo.refs:
            return _error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        made = self._commit(repo, revision, files, header["summary"], len(lines) - 1, size)
        return JSONResponse(
            {**answer, "commitOid": made.oid, "commitUrl": f"{self.url}/datasets/{repo.name}/commit/{made.oid}"}
        )


def _entry(path: str, file: File) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "oid": file.oid, "size": file.size, "path": path}
    if file.sha256:
        entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 134}
    return entry


def _mode(file: dict[str, Any]) -> dict[str, Any]:
    is_lfs = file["path"].endswith(LFS_PATTERNS) or file["size"] > LFS_FROM
    return {"path": file["path"], "uploadMode": "lfs" if is_lfs else "regular", "shouldIgnore": False}


def _paths(request: Request, body: bytes) -> list[str]:
    if "json" in request.headers.get("content-type", ""):
        given = json.loads(body)["paths"]
        return given if isinstance(given, list) else [given]
    return parse_qs(body.decode())["paths"]


def _error(status: int, message: str, code: str | None = None) -> Response:
    headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return JSONResponse({"error": message}, status, headers)
