"""A fake of the Hub's HTTP API, as far as publishing uses it. It keeps the uploaded files."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


LARGE = 100_000  # bytes; larger files are uploaded through LFS
TOKEN = "hf_of_the_test"


class Hub:
    """
    The server, which listens at `url`.

    Attributes:
        repos: kind and name ("models/someone/sener") -> path -> content.
        commits: (repository, summary, paths added, paths deleted) of each commit.
        variables: of Spaces, by repository.
        cards: model cards that were sent to be validated.
    """

    def __init__(self):
        self.repos: dict[str, dict[str, bytes]] = {}
        self.commits: list[tuple] = []
        self.variables: dict[str, dict[str, str]] = {}
        self.cards: list[str] = []
        self.large: dict[str, bytes] = {}  # sha256 -> content, perhaps in no commit yet
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def handle_request(self):
                content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                path = urlsplit(self.path).path
                if path.startswith("/upload/"):  # signed addresses need no token
                    status, answer = hub.receive(path.removeprefix("/upload/"), content)
                elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    status, answer = 401, {"error": "Invalid username or password."}
                else:
                    status, answer = hub.answer(self.command, path.strip("/").split("/"), content)
                body = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_PUT = handle_request

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    def receive(self, oid, content):
        """Store a large file; its hash must be the announced one."""
        if hashlib.sha256(content).hexdigest() != oid:
            return 400, {"error": "other content than announced"}
        self.large[oid] = content
        return 200, {}

    def answer(self, method, parts, content):
        match method, parts:
            case "POST", ["api", "repos", "create"]:
                fields = json.loads(content)
                name = f"{fields.get('type', 'model')}s/{fields['organization']}/{fields['name']}"
                if name in self.repos:
                    return 409, {"error": "You already created this repo", "url": f"{self.url}/{name}"}
                if name.startswith("spaces/") and fields.get("sdk") != "gradio":
                    return 400, {"error": "a Space needs an sdk"}
                self.repos[name] = {".gitattributes": b""}
                return 200, {"url": f"{self.url}/{name}", "name": name.split("/", 1)[1]}
            case "POST", ["api", "validate-yaml"]:
                self.cards.append(json.loads(content)["content"])
                return 200, {"errors": [], "warnings": []}
            case "POST", [user, name, "info", "lfs", "objects", "batch"] | [_, user, name, "info", "lfs", "objects",
                                                                              "batch"]:  # fmt: skip
                objects = json.loads(content)["objects"]
                actions = [{**each, "actions": {"upload": {"href": f"{self.url}/upload/{each['oid']}"}}}
                           for each in objects]  # fmt: skip
                return 200, {"transfer": "basic", "objects": actions}
            case _, ["api", kind, user, name, *rest] if f"{kind}/{user}/{name}" in self.repos:
                return self.answer_about(f"{kind}/{user}/{name}", rest, content)
        return 404, {"error": f"no such thing: {method} {parts}"}

    def answer_about(self, repo, parts, content):
        files = self.repos[repo]
        match parts:
            case ["preupload", "main"]:
                modes = [{"path": each["path"], "uploadMode": "lfs" if each["size"] >= LARGE else "regular",
                          "shouldIgnore": False, "oid": None} for each in json.loads(content)["files"]]  # fmt: skip
                return 200, {"files": modes}
            case ["variables"]:
                fields = json.loads(content)
                self.variables.setdefault(repo, {})[fields["key"]] = fields["value"]
                return 200, {}
            case ["tree", "main"]:
                return 200, [{"type": "file", "path": path, "oid": "0" * 40, "size": len(data)}
                             for path, data in files.items()]  # fmt: skip
            case [] | ["revision", "main"]:
                return 200, {"id": repo.split("/", 1)[1], "siblings": [{"rfilename": path} for path in files]}
            case ["commit", "main"]:
                return 200, self.commit(repo, [json.loads(line) for line in content.splitlines()])
        return 404, {"error": f"no such thing: {parts}"}

    def commit(self, repo, lines):
        files, added, deleted = self.repos[repo], [], []
        for line in lines[1:]:
            path = line["value"]["path"]
            if line["key"] == "deletedFile":
                del files[path]
                deleted.append(path)
                continue
            if line["key"] == "lfsFile":
                files[path] = self.large[line["value"]["oid"]]
            else:
                files[path] = base64.b64decode(line["value"]["content"])
            added.append(path)
        self.commits.append((repo, lines[0]["value"]["summary"], sorted(added), sorted(deleted)))
        oid = f"{len(self.commits):040x}"
        return {"success": True, "commitOid": oid, "commitUrl": f"{self.url}/{repo}/commit/{oid}"}
