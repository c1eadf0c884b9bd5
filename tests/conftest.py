"""
Fixtures for all tests: the device, a running web demo, a browser, and Accelerate's state as in a new process.
"""

import pytest
import torch
from accelerate.state import AcceleratorState
from gradio_client import Client
from playwright.sync_api import sync_playwright
from support.demo_browser import CHROMIUM, TIMEOUT
from support.demo_server import DemoServer, tiny_checkpoint


DEVICES = ["cpu"] + [pytest.param("cuda", marks=pytest.mark.cuda)] * torch.cuda.is_available()


@pytest.fixture(scope="session", params=DEVICES)
def device(request) -> str:
    """The device of an exactness test: the CPU, then a CUDA device if there is one, without TF32."""
    if request.param == "cpu":
        yield "cpu"
        return
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield request.param
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="session")
def demo_model(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="session")
def demo_server(demo_model):
    server = DemoServer(demo_model)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def client(demo_server):
    return Client(demo_server.url, verbose=False)


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, demo_server):
    """
    Opens the page in a session of its own. At the end, checks that no page had a script error, opened a dialog or sent
    a request elsewhere.
    """
    contexts, faults = [], []

    def open_page(theme="light", width=1280):
        context = browser.new_context(viewport={"width": width, "height": 900}, accept_downloads=True)
        context.set_default_timeout(TIMEOUT)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        page.on("dialog", lambda dialog: faults.append(f"dialog: {dialog.message}") or dialog.dismiss())
        outside = lambda request: not request.url.startswith((demo_server.url, "blob:", "data:"))  # noqa: E731
        page.on("request", lambda request: outside(request) and faults.append(f"request: {request.url}"))
        page.goto(f"{demo_server.url}/?__theme={theme}")
        page.wait_for_function("window.sener")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not faults
    assert "NETWORK" not in demo_server.log


@pytest.fixture
def no_state():
    """Reset Accelerate's state, as in a new process: it would keep precision and devices for the tests that follow."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
