"""Attacks on the demo's server: each function is the behaviour of one client, which ignores the answers."""

import asyncio
import secrets
from urllib.parse import urlsplit

import httpx


API = "/gradio_api"
HELD = 20  # seconds that a connection is held open
FILE = {"_type": "gradio.FileData"}


def http(load) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=load.url, timeout=30)


async def connect(load, start: str = "", *headers: str) -> asyncio.StreamWriter:
    """Open a connection and send the head of a request."""
    address = urlsplit(load.url)
    _, writer = await asyncio.open_connection(address.hostname, address.port)
    if start:
        lines = (f"{start} HTTP/1.1", "Host: x", *headers, "", "")
        writer.write("\r\n".join(lines).encode())
    return writer


async def join(client, load, name, data) -> str:
    """Join the queue; returns the session."""
    session = secrets.token_hex(6)
    body = {"data": data, "fn_index": load.functions[name], "session_hash": session}
    await client.post(f"{API}/queue/join", json=body)
    return session


async def leave_while_it_runs(load, draw):
    async with http(load) as client:
        name, text = draw.choice(("run", "extract")), draw.choice(load.texts)
        session = await join(client, load, name, [text, None] if name == "run" else [text, 0.5, None])
        async with client.stream("GET", f"{API}/queue/data", params={"session_hash": session}) as stream:
            async for _ in stream.aiter_lines():
                break


async def never_listen(load, draw):
    async with http(load) as client:
        await join(client, load, "run", [draw.choice(load.texts), None])


async def send_what_is_no_request(load, draw):
    extract = load.functions["extract"]
    bodies = (
        b"", b"{", b"null", b"[]", b"\xff\xfe\x00", b'{"data": "\xff"}', b"[" * 100_000 + b"]" * 100_000,
        b'{"data": ["\\ud800 a", 0.5, null], "fn_index": %d, "session_hash": "s"}' % extract,
        b'{"data": [1], "fn_index": 99999, "session_hash": "s"}', b'{"data": NaN}', secrets.token_bytes(2000),
        b'{"data": [], "fn_index": -1, "session_hash": 5}', b'{"data": {"a": 1}, "fn_index": "x"}',
    )  # fmt: skip
    paths = ("queue/join", "call/extract", "call/none", "cancel", "upload", "run/extract", "component_server", "reset")
    types = ("application/json", "multipart/form-data; boundary=x", "multipart/form-data", "text/plain", "\x01")
    async with http(load) as client:
        for _ in range(10):
            headers = {"Content-Type": draw.choice(types)}
            await client.post(f"{API}/{draw.choice(paths)}", content=draw.choice(bodies), headers=headers)


async def send_wrong_types(load, draw):
    values = (None, 5, [], {}, {"path": "/etc/passwd", "meta": FILE}, "x" * 100_000, True, 1e308)
    async with http(load) as client:
        for name in draw.sample(sorted(load.functions), 5):
            await join(client, load, name, [draw.choice(values) for _ in range(draw.randrange(4))])


async def send_a_huge_body(load, draw):
    length = draw.choice(("Content-Length: 1000000000", "Transfer-Encoding: chunked"))
    writer = await connect(load, f"POST {API}/queue/join", "Content-Type: application/json", length)
    for _ in range(100):
        writer.write(b"a" * 100_000)
        await writer.drain()
    writer.close()


async def send_a_huge_text(load, draw):
    async with http(load) as client:
        await join(client, load, "extract", ["\u20ac" * 1_500_000, 0.5, None])


async def send_headers_slowly(load, draw):
    writer = await connect(load)
    for byte in b"GET / HTTP/1.1\r\nHost: x\r\nX: ":
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(HELD / 30)
    writer.close()


async def hold_a_body_back(load, draw):
    headers = ("Content-Type: application/json", "Content-Length: 9000")
    writer = await connect(load, f"POST {API}/queue/join", *headers)
    writer.write(b"{")
    await asyncio.sleep(HELD)
    writer.close()


async def hold_a_stream_open(load, draw):
    paths = ("heartbeat/x", "queue/data?session_hash=nobody", "upload_progress?upload_id=x", "call/extract/x")
    writer = await connect(load, f"GET {API}/{draw.choice(paths)}")
    await asyncio.sleep(HELD)
    writer.close()


async def upgrade_to_a_websocket(load, draw):
    headers = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13",
               "Sec-WebSocket-Key: eHh4eHh4eHh4eHh4eHh4eA==")  # fmt: skip
    writer = await connect(load, f"GET {API}/queue/join", *headers)
    await asyncio.sleep(HELD / 4)
    writer.transport.abort()


async def send_noise(load, draw):
    noises = (secrets.token_bytes(5000), b"\x16\x03\x01\x02\x00", b"GET " + b"/" * 200_000, b"A: b\r\n" * 9000)
    writer = await connect(load)
    writer.write(draw.choice(noises))
    await writer.drain()
    writer.transport.abort()


async def break_an_upload_off(load, draw):
    headers = ("Content-Type: multipart/form-data; boundary=X", "Content-Length: 9000000")
    writer = await connect(load, f"POST {API}/upload", *headers)
    writer.write(b'--X\r\nContent-Disposition: form-data; name="files"; filename="a.txt"\r\n\r\n' + b"z" * 300_000)
    await writer.drain()
    writer.transport.abort()


async def upload_a_broken_file(load, draw):
    content = draw.choice((b"%PDF-1.4 nonsense", secrets.token_bytes(5000), b"<div>" * 20_000, b"{", b""))
    name = f"../../{draw.choice(('a.pdf', 'a.html', 'a.jsonl', 'a.txt', 'a.exe'))}"
    async with http(load) as client:
        answer = await client.post(f"{API}/upload", files={"files": (name, content)})
        if answer.status_code == 200:
            await join(client, load, "open_file", [{"path": answer.json()[0], "meta": FILE}])


async def ask_for_files(load, draw):
    async with http(load) as client:
        for path in ("/etc/passwd", "../../../../etc/passwd", "http://example.com/", "%2e%2e/%2e%2e/etc/passwd"):
            await client.get(f"{API}/file={path}")


ATTACKS = [(function.__name__.replace("_", " "), function) for function in (
    leave_while_it_runs, never_listen, send_what_is_no_request, send_wrong_types, send_a_huge_body, send_a_huge_text,
    send_headers_slowly, hold_a_body_back, hold_a_stream_open, upgrade_to_a_websocket, send_noise, break_an_upload_off,
    upload_a_broken_file, ask_for_files,
)]  # fmt: skip
