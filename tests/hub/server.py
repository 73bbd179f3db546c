"""A small Hugging Face Hub: as much of its HTTP interface as `huggingface_hub` needs to fetch and push models."""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

LARGE_FILES = (".safetensors",)  # what goes through LFS


@dataclass
class Commit:
    """One commit, with all files of the repository as they are after it."""

    message: str
    changed: list[str]
    files: dict[str, bytes]
    token: str | None

    @property
    def oid(self):
        contents = [f"{name}{hashlib.sha256(data).hexdigest()}" for name, data in sorted(self.files.items())]
        return hashlib.sha1("\n".join([self.message, *contents]).encode()).hexdigest()


@dataclass
class Repository:
    private: bool = False
    commits: list[Commit] = field(default_factory=list)  # of the main branch
    branches: dict[str, list[Commit]] = field(default_factory=dict)  # the others

    def branch(self, name):
        return self.commits if name == "main" else self.branches.get(name)

    def at(self, revision):
        if (branch := self.branch(revision)) is not None:
            return branch[-1] if branch else Commit("", [], {}, None)  # a new one is empty
        every = [*self.commits, *(commit for branch in self.branches.values() for commit in branch)]
        return next((commit for commit in every if commit.oid == revision), None)


class Hub:
    """The server, running in a thread while it is open as a context.

    `repositories` by id; `requests`, (method, path, token) of all that came; `fail_commits`, how many of the next
    commits to refuse with status 500; `read_only` and `unknown`, tokens that may not write, and that nobody has.
    """

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # LFS, by sha256
        self.requests: list[tuple[str, str, str | None]] = []
        self.fail_commits = 0
        self.read_only: set[str] = set()
        self.unknown: set[str] = set()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def add(self, repo_id, files, *, private=False):
        """Make a repository with one commit."""
        commit = Commit("initial", sorted(files), files, None)
        self.repositories[repo_id] = Repository(private, [commit])
        return commit

    def __enter__(self):
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


REPO, AT = r"(?P<repo>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"
ROUTES = [  # methods, path, which method of the handler answers
    ("GET HEAD", rf"/{REPO}/resolve/{AT}/(?P<name>.+)", "resolve"),
    ("GET", rf"/api/models/{REPO}(/revision/{AT})?", "info"),
    ("GET", rf"/api/models/{REPO}/tree/{AT}", "tree"),
    ("POST", "/api/repos/create", "create"),
    ("POST", "/api/validate-yaml", "validate_yaml"),
    ("POST", rf"/api/models/{REPO}/branch/(?P<name>[^/]+)", "create_branch"),
    ("POST", rf"/api/models/{REPO}/preupload/{AT}", "preupload"),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("POST", rf"/api/models/{REPO}/commit/{AT}", "commit"),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", "lfs_put"),
]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def __getattr__(self, name):
        """`do_GET` and the like, which the base class looks for."""
        if not name.startswith("do_"):
            raise AttributeError(name)
        return lambda: self.route(name.removeprefix("do_"))

    def route(self, method):
        path = unquote(self.path.partition("?")[0])
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append((method, path, self.token()))
        if self.token() in self.hub.unknown:
            message = "Invalid credentials in Authorization header"
            self.reply(401, {"error": message}, {"X-Error-Message": message})
            return
        for methods, pattern, handler in ROUTES:
            if method in methods and (match := re.fullmatch(pattern, path)):
                getattr(self, handler)(**match.groupdict())
                return
        self.reply(404, {"error": f"no {method} {path}"})

    def token(self):
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def repository(self, repo):
        """The repository, unless it is not there or hidden from this request, which is then answered."""
        found = self.hub.repositories.get(repo)
        if found is None or (found.private and self.token() is None):
            self.reply(401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return None
        return found

    def may_write(self):
        """Whether the request's token may; if not, it is answered."""
        if self.token() is None:
            self.reply(401, {"error": "a token is needed"})
            return False
        if self.token() in self.hub.read_only:
            self.reply(403, {"error": "this token may only read"})
            return False
        return True

    def resolve(self, repo, revision, name):
        if (commit := self.commit_at(repo, revision)) is None:
            return
        if name not in commit.files:
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit.oid}
            self.reply(404, {"error": "Entry not found"}, headers)
        else:
            data = commit.files[name]
            self.reply(200, data, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": commit.oid})

    def info(self, repo, revision):
        if (commit := self.commit_at(repo, revision or "main")) is not None:
            private = self.hub.repositories[repo].private
            self.reply(200, {"id": repo, "private": private, "siblings": [], "tags": [], "sha": commit.oid})

    def tree(self, repo, revision):
        if (commit := self.commit_at(repo, revision)) is not None:
            files = [{"type": "file", "path": name, "size": len(data)} for name, data in commit.files.items()]
            self.reply(200, [{**file, "oid": hashlib.sha1(str(file).encode()).hexdigest()} for file in files])

    def commit_at(self, repo, revision):
        """The commit, unless there is none to be seen, which is then answered."""
        if (repository := self.repository(repo)) is None:
            return None
        if (commit := repository.at(revision)) is None:
            self.reply(404, {"error": "Revision not found"}, {"X-Error-Code": "RevisionNotFound"})
        return commit

    def create(self):
        wanted = json.loads(self.body)
        repo = f"{wanted['organization'] or 'somebody'}/{wanted['name']}"
        if not self.may_write():
            return
        if repo in self.hub.repositories:
            self.reply(409, {"error": "exists", "url": f"{self.hub.url}/{repo}"})
        else:
            private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
            self.hub.repositories[repo] = Repository(private)
            self.reply(200, {"url": f"{self.hub.url}/{repo}", "id": repo})

    def create_branch(self, repo, name):
        if (repository := self.repository(repo)) is None or not self.may_write():
            return
        if name in repository.branches:
            self.reply(409, {"error": "exists"})
            return
        repository.branches[name] = list(repository.commits)
        self.reply(201, {})

    def validate_yaml(self):
        self.reply(200, {"errors": [], "warnings": []})

    def preupload(self, repo, revision):
        if self.repository(repo) is None or not self.may_write():
            return
        paths = [file["path"] for file in json.loads(self.body)["files"]]
        modes = {path: "lfs" if path.endswith(LARGE_FILES) else "regular" for path in paths}
        self.reply(200, {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]})

    def lfs_batch(self, repo):
        objects = json.loads(self.body)["objects"]
        for item in objects:
            if item["oid"] not in self.hub.objects:
                item["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{item['oid']}"}}
        self.reply(200, {"transfer": "basic", "objects": objects})

    def lfs_put(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            self.reply(400, {"error": "damaged on the way"})
            return
        self.hub.objects[oid] = self.body
        self.reply(200, {})

    def commit(self, repo, revision):
        if (repository := self.repository(repo)) is None or not self.may_write():
            return
        if (branch := repository.branch(revision)) is None:
            self.reply(404, {"error": "Revision not found"}, {"X-Error-Code": "RevisionNotFound"})
            return
        if self.hub.fail_commits > 0:
            self.hub.fail_commits -= 1
            self.reply(500, {"error": "out of order"})
            return
        lines = [json.loads(line) for line in self.body.splitlines()]
        files = dict(branch[-1].files) if branch else {}
        changed = []
        message = ""
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
                continue
            changed.append(value["path"])
            if line["key"] == "deletedFile":
                del files[value["path"]]
                continue
            is_large = line["key"] == "lfsFile"
            files[value["path"]] = self.hub.objects[value["oid"]] if is_large else base64.b64decode(value["content"])
        branch.append(Commit(message, sorted(changed), files, self.token()))
        oid = branch[-1].oid
        self.reply(200, {"commitUrl": f"{self.hub.url}/{repo}/commit/{oid}", "commitOid": oid})

    def reply(self, status, content, headers=None):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *args):
        """Quiet."""
