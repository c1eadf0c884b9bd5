"""The demo's refusals over HTTP: files, addresses, routes, large requests, slow texts, a full queue, attacks."""

import asyncio
import contextlib
import http.client
import itertools
import json
import os
import random
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import guard
import httpx
import pytest
from support.demo_hostile import ATTACKS, FILE, break_an_upload_off
from support.demo_server import DemoServer
from support.toy import ROOT
from tools.demo_load import ask


LONG = "word " * 120_000
SESSIONS = 8


@pytest.fixture(scope="module")
def server(demo_model, tmp_path_factory):
    """
    A demo with small limits: a second for each text, three in the queue, files kept for ten seconds. `server.folder`
    holds its files, `server.hub` is a file in the Hub's cache.
    """
    limits = {"MAX_WAITING": 3, "KEEP_FILES": 10, "READING_SECONDS": 5, "READING_MEMORY": 1_000_000_000,
              "MAX_SESSIONS": SESSIONS}  # fmt: skip
    hub = tmp_path_factory.mktemp("hub")
    server = DemoServer(demo_model, limits, SENER_MAX_SECONDS="1", HF_HOME=str(hub))
    server.hub = hub / "secret.txt"
    server.functions = {each["api_name"]: each["id"] for each in get(server, "/config").json()["dependencies"]}
    server.folder = Path(upload(server, "a.txt", b"its own").json()[0]).parent.parent
    yield server
    server.stop()
    assert "NETWORK" not in server.log
    assert not server.folder.exists()


def get(server, path: str, **headers) -> httpx.Response:
    return httpx.get(server.url + path, headers=headers, timeout=60)


def post(server, path: str, **request) -> httpx.Response:
    return httpx.post(f"{server.url}/gradio_api/{path}", timeout=60, **request)


def upload(server, name: str, content: bytes) -> httpx.Response:
    return post(server, "upload", files={"files": (name, content)})


def call(server, name: str, *data, session: str | None = None) -> list:
    """Call a function of the page; returns its outputs. Raises `ValueError` with the page's message."""

    async def once():
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as http:
            return await ask(http, session or os.urandom(6).hex(), server.functions[name], list(data))

    return asyncio.run(once())


def opened(server, name: str, content: bytes) -> str:
    """Upload a file and open it. Returns its text, or the page's error message."""
    path = upload(server, name, content).json()[0]
    text, _, message = call(server, "open_file", {"path": path, "meta": FILE})
    return json.loads(message)["error"] if isinstance(message, str) else text


def raw(server, target: str) -> tuple[int, bytes]:
    """Status and content of a GET of exactly this target, which other client libraries would normalise."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    connection.putrequest("GET", target, skip_host=False)
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_only_files_of_the_page_are_served(server, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("SECRET-7351")
    server.hub.write_text("SECRET-7351")
    link = server.folder / "link.txt"
    link.symlink_to(secret)
    own = server.folder / "own.txt"
    own.write_text("SECRET-7351")  # another visitor's upload
    up = "../" * 12
    names = [*map(str, (secret, server.hub, link, own)), up + str(secret)[1:], "/proc/self/environ", "/etc/passwd",
             "app.py", str(ROOT / "space/app.py"), "space/app.py", ".", "", "file:///etc/passwd",
             f"/proc/self/root{secret}", f"{server.folder}/../{tmp_path.name}/secret.txt"]  # fmt: skip
    prefixes = ("/gradio_api/file=", "/file=", "/gradio_api/file/", "/", "/static/", "/assets/", "/svelte/",
                "/gradio_api/proxy=", "/gradio_api/queue/../file=", "/gradio_api/stream/",
                "//gradio_api/file=")  # fmt: skip
    for name, prefix in itertools.product(names, prefixes):
        for form in {name, name.replace("/", "%2f"), name.replace(".", "%2e"), name.replace("..", "..%5c"),
                     name.replace("/", "%252f"), name + "%00.txt"}:  # fmt: skip
            status, content = raw(server, (prefix + form).replace(" ", "%20"))
            is_page = content.startswith(b"<!doctype html>") and prefix + name in ("/", "//")
            assert status >= 400 or is_page, (prefix + form, status, content[:80])
            assert b"SECRET" not in content and b"root:x:" not in content and b"def main" not in content
    assert raw(server, "/static/img/logo.svg")[0] == 200 == raw(server, "/theme.css")[0]


def test_a_request_that_names_a_file_of_the_server_or_an_address_is_refused(server, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("SECRET-7351")
    for path in (str(secret), f"{server.folder}/../{tmp_path.name}/secret.txt", "/proc/self/environ", "space/app.py",
                 "http://example.com/a.txt", "https://example.com/a.txt", "file:///etc/passwd"):  # fmt: skip
        for given in ({"path": path, "meta": FILE}, {"path": path, "url": path, "meta": FILE}):
            calls = {"open_file": [given], "extract": [given, 0.5, None], "run": [given, None], "choose": [0, given]}
            for name, data in calls.items():
                with pytest.raises(ValueError) as error:
                    call(server, name, *data)
                assert "SECRET" not in str(error.value)
    assert "NETWORK" not in server.log


def test_routes_that_the_page_does_not_need_are_refused(server):
    body = {"data": ["Ada Lovelace", 0.5, None]}
    for path in ("run/extract", "api/extract", "run/open_file", "component_server", "process_recording", "vibe-edit",
                 "stream/x", "run-history/connect", "deep_link?session_hash=x"):  # fmt: skip
        assert post(server, path, json=body).status_code == 404, path
    for path in ("deep_link?session_hash=x", "vibe-code", "custom_component/a/client/b/c", "runs", "proxy=http://a/",
                 "file=http://example.com/"):  # fmt: skip
        assert get(server, f"/gradio_api/{path}").status_code == 404, path
    assert get(server, "/monitoring").status_code == get(server, "/monitoring/summary").status_code == 403
    assert "NETWORK" not in server.log


def test_sizes_are_limited(server):
    limit = guard.MAX_UPLOAD
    assert upload(server, "a.txt", b"a" * 19_999_999).status_code == 200
    for content in (b"a" * 20_000_001, b"a" * limit):
        assert upload(server, "a.txt", content).status_code == 413
    many = [("files", (f"{n}.txt", b"a" * 5_000_000)) for n in range(5)]
    assert post(server, "upload", files=many).status_code == 413
    for path in ("queue/join", "call/extract", "cancel"):
        answer = post(server, path, content=b" " * (guard.MAX_BODY + 1), headers={"Content-Type": "application/json"})
        assert answer.status_code == 413 and f"{guard.MAX_BODY:,} bytes" in answer.text
        assert post(server, path, content=iter([b"{}"])).status_code == 413  # of no stated length
    with pytest.raises(ValueError, match="1,000,001 characters"):
        call(server, "extract", "\U0001f600" * 1_000_001, 0.5, None)
    assert call(server, "extract", "\U0001f600 " * 1000, 1.0, None) == [[]]


def test_time_is_limited_and_the_next_text_is_read(server):
    for _ in range(2):
        with pytest.raises(ValueError, match="longer than the 1 seconds that this page gives a text, and was stopped"):
            call(server, "extract", LONG, 0.5, None)
        (message,) = call(server, "run", LONG, None)
        assert "longer than the 1 seconds" in json.loads(message)["error"]
        (message,) = call(server, "run", "Ada Lovelace in London", None)
        assert json.loads(message)["result"]["text"] == "Ada Lovelace in London"


def test_a_full_queue_says_so_and_empties(server):
    codes, body = [], {"data": [LONG, 0.5, None], "fn_index": server.functions["extract"]}
    while 503 not in codes and len(codes) < 40:
        answer = post(server, "queue/join", json={**body, "session_hash": f"full{len(codes)}"})
        codes.append(answer.status_code)
    assert codes[:3] == [200] * 3 and codes[-1] == 503 and "Queue is full" in answer.text
    deadline = time.monotonic() + 120
    while get(server, "/gradio_api/queue/status").json()["queue_size"] and time.monotonic() < deadline:
        time.sleep(0.2)
    assert isinstance(call(server, "extract", "Ada Lovelace", 0.5, None), list)


def test_no_more_than_max_sessions_are_held(server):
    path = upload(server, "a.jsonl", b'{"text": "one"}\n{"text": "two"}').json()[0]
    file = {"path": path, "meta": FILE}
    call(server, "open_file", file, session="mine")  # the session's dropdown has its choices from here on
    assert call(server, "choose", 1, file, session="mine")[0] == "two"
    body = {"data": [], "fn_index": server.functions["paper"]}
    post(server, "queue/join", json={**body, "session_hash": "never heard"})
    for number in range(SESSIONS):
        call(server, "paper", session=f"other {number}")
    with pytest.raises(ValueError, match="not in the list of choices"):
        call(server, "choose", 1, file, session="mine")
    with pytest.raises(httpx.RemoteProtocolError):  # Gradio breaks off, as it does not know the session
        get(server, "/gradio_api/queue/data?session_hash=never heard")
    post(server, "queue/join", json={**body, "session_hash": "heard late"})
    assert "process_completed" in get(server, "/gradio_api/queue/data?session_hash=heard late").text


def test_files_that_exhaust_a_reader_are_stopped(server):
    assert opened(server, "<img src=x>&.txt", b"<b>fine</b>") == "<b>fine</b>"
    message = opened(server, "slow.html", b"<i>x</i>" * 1_000_000)
    assert message.startswith("slow.html: ") and ("longer than 5 seconds" in message or "memory" in message)
    for name in ("a.zip", "a.docx", "a.txt.exe", "a"):
        path = upload(server, name, b"PK\x03\x04").json()[0]
        with pytest.raises(ValueError, match="Invalid file type"):
            call(server, "open_file", {"path": path, "meta": FILE})
    assert opened(server, "../../../x.txt", b"still here") == "still here"
    assert opened(server, "a.txt", b"a.txt") == "a.txt"


def test_uploads_are_deleted_even_those_broken_off(server):
    load = SimpleNamespace(url=server.url)
    asyncio.run(break_an_upload_off(load, None))
    path = upload(server, "b.txt", b"b").json()[0]
    deadline = time.monotonic() + 60
    while (left := list(server.folder.rglob("*"))) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []
    _, _, message = call(server, "open_file", {"path": path, "meta": FILE})
    assert json.loads(message)["error"] == "b.txt: deleted by now. Drop it again."
    _, message = call(server, "choose", None, {"path": path, "meta": FILE})
    assert json.loads(message)["error"] == "b.txt: deleted by now. Drop it again."


def test_only_old_files_are_deleted(tmp_path):
    for name in ("old/a.txt", "old/new/b.txt", "c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "link").symlink_to("/etc")
    old = time.time() - 2 * guard.KEEP_FILES
    for name in ("old/a.txt", "old", "link"):
        os.utime(tmp_path / name, (old, old), follow_symlinks=False)
    guard.delete_old(tmp_path)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "c.txt", "old", "old/new", "old/new/b.txt"
    ]  # fmt: skip


def test_text_of_a_request_does_not_become_html(server):
    hostile = "</script><script>alert(1)</script>"
    for path in (
        f"/?__theme={hostile}",
        f"/?view={hostile}",
        f"/{hostile}",
        f"/gradio_api/{hostile}",
        f"/config?{hostile}",
    ):
        answer = get(server, path, **{"X-Forwarded-Host": f'x"{hostile}'})
        assert hostile not in answer.text or "html" not in answer.headers["content-type"], path
    answer = post(server, "call/extract", json={"data": [hostile, "x"]})
    assert "html" not in answer.headers["content-type"]


@pytest.mark.parametrize("attack", [function for _, function in ATTACKS], ids=lambda function: function.__name__)
def test_an_attack_does_not_disturb_other_clients(server, attack, monkeypatch):
    monkeypatch.setattr("support.demo_hostile.HELD", 0.2)
    text = "Ada Lovelace worked with Charles Babbage in London"
    expected = call(server, "extract", text, 0.1, None)
    load = SimpleNamespace(url=server.url, functions=server.functions, texts=["Ada Lovelace in London"])
    for seed in range(2):
        with contextlib.suppress(OSError, httpx.HTTPError):
            asyncio.run(attack(load, random.Random(seed)))
    assert (
        expected[0]
        and call(server, "extract", "Ada Lovelace worked with Charles Babbage in London", 0.1, None) == expected
    )
