"""serve.py under uvicorn, started as its docstring says."""

import json
import os
import re
import subprocess
import sys
import threading
import urllib.request
from http.client import HTTPConnection
from urllib.error import HTTPError
from urllib.parse import urlsplit

import pytest
from support.demo_server import tiny_checkpoint
from support.toy import ROOT

from modeling_sener import SenerPipeline
from training.bundle import bundle
from training.fitting.checkpoint import load_checkpoint
from training.serve import MAX_BYTES


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A checkpoint without a copy of the code."""
    folder = tmp_path_factory.mktemp("serve")
    bundle(tiny_checkpoint(folder), folder / "bare")
    return folder / "bare"


@pytest.fixture(scope="module")
def url(model):
    """The server's address, on a free port."""
    server = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "training.serve:app", "--port", "0", "--limit-concurrency", "64"],
        cwd=ROOT, text=True, env={**os.environ, "SENER_MODEL": str(model), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
    )  # fmt: skip
    lines, address, started = [], [], threading.Event()

    def read():
        for line in server.stderr:
            lines.append(line)
            if found := re.search(r"running on (http://\S+)", line):
                address.append(found[1])
                started.set()
        started.set()

    threading.Thread(target=read, daemon=True).start()
    started.wait(180)
    assert address, "".join(lines)
    yield address[0]
    server.terminate()
    server.wait(30)


def post(url, body, **headers):
    """Send a request to /extract. Returns (status, answer)."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(f"{url}/extract", data, headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        return error.code, json.load(error)


def test_the_server_answers_with_the_pipelines_entities(url, model):
    texts = ["Ada Lovelace worked 😀 with Charles Babbage.", "", "ResNet-50 on ImageNet"]
    own, processor = load_checkpoint(model)
    extract = SenerPipeline(model=own, processor=processor)
    for threshold in (None, 0.0):
        status, found = post(url, {"texts": texts, "threshold": threshold})
        expected = extract(texts, threshold=threshold)
        assert status == 200 and [len(each) for each in found] == [len(each) for each in expected]
        for entity, other in zip(sum(found, []), sum(expected, []), strict=True):
            assert {**entity, "score": 0} == {**other, "score": 0}
            assert entity["score"] == pytest.approx(other["score"], abs=1e-5)
    assert any(found)


@pytest.mark.parametrize(
    "body",
    [{}, {"texts": []}, {"texts": "one"}, {"texts": [1]}, {"texts": ["a"] * 65}, {"texts": ["a"], "threshold": 2}],
)
def test_a_request_with_wrong_fields_is_refused(url, body):
    status, answer = post(url, body)
    assert status == 422 and answer["detail"]


def head_of_a_post(url, name, value):
    """
    Send the head of a request with this header, and no body: a refusal would interrupt it. Returns (status, answer).
    """
    connection = HTTPConnection(urlsplit(url).netloc, timeout=120)
    connection.putrequest("POST", "/extract")
    connection.putheader("Content-Type", "application/json")
    connection.putheader(name, value)
    connection.endheaders()
    with connection.getresponse() as answer:
        return answer.status, json.load(answer)


def test_a_large_request_is_refused(url):
    status, answer = head_of_a_post(url, "Content-Length", str(MAX_BYTES + 1))
    assert status == 413 and f"{MAX_BYTES:,} bytes" in answer["detail"]
    status, _ = head_of_a_post(url, "Transfer-Encoding", "chunked")
    assert status in (400, 413)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"null", b'{"texts": ["\xff"]}', b"[" * 100_000, b'{"texts": "\\ud800"}',
     b'{"texts": ["Ada \\ud800 London"], "threshold": 0.0}', b'{"texts": ["a"], "threshold": NaN}',
     b'{"texts": ["a"], "threshold": 1e999}'],
)  # fmt: skip
def test_garbage_is_refused_and_the_next_text_is_read(url, body):
    status, answer = post(url, body)
    assert status in (400, 422) and answer["detail"]
    assert post(url, {"texts": ["Ada Lovelace"]})[0] == 200
