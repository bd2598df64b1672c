"""A server that speaks as much of the Hugging Face Hub's interface as huggingface_hub needs to read and write models.

Written from what huggingface_hub sends and asks for; the Hub itself has not been seen. Repositories are kept in memory.
Large and binary files go by LFS, as there, and lists of files come in pages.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

_PAGE = 7


class Repository:
    """Commits, each {path: content}, and the names of some."""

    def __init__(self, private: bool = False):
        self.private, self.gated = private, False
        self.commits: dict[str, dict[str, bytes]] = {}
        self.messages: list[str] = []
        self.refs: dict[str, str] = {}
        self.commit({".gitattributes": b"*.npz filter=lfs\n"}, "initial commit")

    def commit(self, files: dict[str, bytes], message: str) -> str:
        self.messages.append(message)
        sha = hashlib.sha1(repr((sorted(files), len(self.messages), message)).encode()).hexdigest()
        self.refs["main"], self.commits[sha] = sha, dict(files)
        return sha

    @property
    def files(self) -> dict[str, bytes]:
        """Those of the newest commit."""
        return self.commits[self.refs["main"]]

    def add(self, files: dict[str, bytes], message: str = "by hand") -> str:
        return self.commit(self.files | files, message)

    def resolve(self, revision: str) -> str | None:
        return self.refs.get(revision) or (revision if revision in self.commits else None)


class Hub(ThreadingHTTPServer):
    """repositories: by USER/NAME. tokens: {token: user}. down: a status that everything is answered with."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        self.store = f"http://localhost:{self.server_address[1]}"  # of large files: another host, as there
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.tokens: dict[str, str] = {}
        self.down = 0
        self.asked: list[tuple[str, str]] = []  # method and path


@contextlib.contextmanager
def running() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


def _is_large(content: bytes) -> bool:
    return b"\0" in content[:512] or len(content) > 10_000_000


def _blob(content: bytes) -> str:
    """As git names it."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = ""):
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"
    routes = (
        ("GET", r"/api/models/(?P<name>[^/]+/[^/]+)", "about"),
        ("GET", r"/api/models/(?P<name>[^/]+/[^/]+)/revision/(?P<revision>[^/]+)", "about"),
        ("GET", r"/api/models/(?P<name>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)", "tree"),
        ("GET", r"/(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "file"),
        ("GET", r"/lfs/(?P<oid>\w+)", "read_large"),
        ("PUT", r"/lfs/(?P<oid>\w+)", "write_large"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("POST", r"/api/models/(?P<name>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", r"/(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
        ("POST", r"/api/models/(?P<name>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)", "commit"),
    )

    def log_message(self, *_) -> None:
        pass

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        place = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(place.query).items()}
        self.server.asked.append((self.command, unquote(place.path)))
        method = "GET" if self.command == "HEAD" else self.command
        try:
            if self.server.down:
                raise _Refused(self.server.down)
            self.user = self._user()
            for of, pattern, name in self.routes:
                if of == method and (found := re.fullmatch(pattern, place.path)):
                    getattr(self, name)(body, **{key: unquote(value) for key, value in found.groupdict().items()})
                    return
            raise _Refused(404, "", f"the stand-in does not know {self.command} {self.path}")
        except _Refused as refused:
            told = {"X-Error-Code": refused.code, "X-Error-Message": refused.message}
            headers = {key: value for key, value in told.items() if value}
            self._send(refused.status, json.dumps({"error": refused.message}).encode(), headers)

    do_GET = do_HEAD = do_POST = do_PUT = _any

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value, headers: dict[str, str] | None = None) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    # Who may do what

    def _user(self) -> str | None:
        given = self.headers.get("Authorization")
        if given is None:
            return None
        user = self.server.tokens.get(given.removeprefix("Bearer "))
        if user is None:
            raise _Refused(401, "", "Invalid credentials in Authorization header")
        return user

    def _repository(self, name: str, write: bool = False) -> Repository:
        repository = self.server.repositories.get(name)
        mine = self.user == name.partition("/")[0]
        if repository is None or (repository.private and not mine):
            raise _Refused(401 if self.user is None else 404, "RepoNotFound", "Repository not found")
        if repository.gated and not mine:
            raise _Refused(403, "GatedRepo", "Access to this model is restricted")
        if write and not mine:
            raise _Refused(403, "", "you cannot write here")
        return repository

    def _commit(self, repository: Repository, revision: str) -> str:
        sha = repository.resolve(revision)
        if sha is None:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    # Reading

    def about(self, _, name: str, revision: str = "main") -> None:
        repository = self._repository(name)
        sha = self._commit(repository, revision)
        files = [{"rfilename": path} for path in sorted(repository.commits[sha])]
        self._json({"id": name, "sha": sha, "private": repository.private, "tags": [], "siblings": files})

    def tree(self, _, name: str, revision: str) -> None:
        repository = self._repository(name)
        files = repository.commits[self._commit(repository, revision)]
        rows = []
        for path, content in sorted(files.items()):
            rows.append({"type": "file", "path": path, "size": len(content), "oid": _blob(content)})
            if _is_large(content):
                rows[-1]["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        start = int(self.query.get("cursor", 0))
        more = f'<{self.server.address}{self.path.partition("?")[0]}?cursor={start + _PAGE}>; rel="next"'
        self._json(rows[start : start + _PAGE], {"Link": more} if start + _PAGE < len(rows) else {})

    def file(self, _, name: str, revision: str, path: str) -> None:
        repository = self._repository(name)
        sha = self._commit(repository, revision)
        if path not in repository.commits[sha]:
            raise _Refused(404, "EntryNotFound", "Entry not found")
        content = repository.commits[sha][path]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{_blob(content)}"'}
        if not _is_large(content):
            self._send(200, content, headers)
            return
        oid = hashlib.sha256(content).hexdigest()
        self.server.large[oid] = content
        linked = {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))}
        self._send(302, b"", headers | linked | {"Location": f"{self.server.store}/lfs/{oid}"})

    def read_large(self, _, oid: str) -> None:
        self._send(200, self.server.large[oid], {"ETag": f'"{oid}"'})

    # Writing

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked.get('organization') or self.user}/{asked['name']}"
        if self.user is None or self.user != name.partition("/")[0]:
            raise _Refused(403, "", f"You don't have the rights to create a model under the namespace {name}")
        if name in self.server.repositories:
            raise _Refused(409, "", "You already created this model repo")
        private = asked.get("private") or asked.get("visibility") == "private"
        self.server.repositories[name] = Repository(bool(private))
        self._json({"url": f"{self.server.address}/{name}", "name": name})

    def validate(self, body: bytes) -> None:
        found = re.match(r"---\n(.*?)\n---\n", json.loads(body)["content"], re.DOTALL)
        metadata = yaml.safe_load(found[1]) if found else None
        if not isinstance(metadata, dict) or "license" not in metadata:
            raise _Refused(400, "", "no metadata")
        self._json({"errors": [], "warnings": []})

    def preupload(self, body: bytes, name: str, revision: str) -> None:
        self._commit(self._repository(name, write=True), revision)
        answer = []
        for file in json.loads(body)["files"]:
            large = _is_large(base64.b64decode(file["sample"])) or file["size"] > 10_000_000
            answer.append(
                {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": None}
            )
        self._json({"files": answer})

    def batch(self, body: bytes, name: str) -> None:
        self._repository(name, write=True)
        objects = []
        for one in json.loads(body)["objects"]:
            upload = {"upload": {"href": f"{self.server.store}/lfs/{one['oid']}", "header": {}}}
            objects.append(one if one["oid"] in self.server.large else one | {"actions": upload})
        self._json({"transfer": "basic", "objects": objects})

    def write_large(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise _Refused(400, "", "another content than was announced")
        self.server.large[oid] = body
        self._send(200, b"")

    def commit(self, body: bytes, name: str, revision: str) -> None:
        repository = self._repository(name, write=True)
        files, message = dict(repository.commits[self._commit(repository, revision)]), ""
        for line in body.splitlines():
            value = json.loads(line)["value"]
            match json.loads(line)["key"]:
                case "header":
                    message = value["summary"]
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.server.large[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
                case key:
                    raise _Refused(400, "", f"the stand-in does not know {key}")
        sha = repository.commit(files, message)
        self._json({"success": True, "commitOid": sha, "commitUrl": f"{self.server.address}/{name}/commit/{sha}"})
