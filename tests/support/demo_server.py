"""Run the web demo in a process of its own, without a network, on a tiny model with random weights."""

import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import torch
from support.tiny_models import randomize
from support.toy import LABELS, ROOT, toy_backbone

from modeling_sener import SenerModel, SenerProcessor
from training.fitting.checkpoint import save_checkpoint


# Starts the demo. Refuses every look-up and connection that leaves the machine, and prints it as NETWORK.
WITHOUT_NETWORK = """
import runpy, sys

def refuse(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    if host not in (None, "", "127.0.0.1", "localhost", "::1", "0.0.0.0"):
        print(f"NETWORK {event} {host!r}", file=sys.stderr, flush=True)
        raise OSError(f"no network: {host!r}")

sys.addaudithook(refuse)
sys.path.insert(0, "space")
import limits
vars(limits).update({})
runpy.run_path("space/app.py", run_name="__main__")
"""


def tiny_checkpoint(folder: Path, **fields) -> Path:
    """A checkpoint that finds some 15 spans at 0.5 in 100 words, nested and crossing candidates among them."""
    backbone = toy_backbone(folder / "backbone")
    sizes = {"span_window": 5, "attention_window": 8, "span_channels": 4, "biaffine_size": 8, "span_layers": 1}
    model = SenerModel.from_backbone(str(backbone), labels=LABELS, **{**sizes, **fields})
    for part in (model.biaffine, model.blocks, model.classifier):
        randomize(part)
    with torch.no_grad():
        model.classifier.weight.mul_(1.5)
        model.classifier.bias.fill_(-5.5)
    processor = SenerProcessor.from_backbone(str(backbone), model.config)
    save_checkpoint(model.eval(), processor, folder / "model")
    return folder / "model"


def checkout(root: Path, **models: Path) -> Path:
    """
    Make a checkout at `root`, of links: this demo, and `models` at their places in it. A model at `modeling_sener` is
    a package, as in the repository.
    """
    root.mkdir()
    (root / "space").symlink_to(ROOT / "space")
    for place, model in models.items():
        (root / place).mkdir(parents=True)
        for file in model.iterdir():
            (root / place / file.name).symlink_to(file)
    if "modeling_sener" in models:
        (root / "modeling_sener" / "__init__.py").symlink_to(ROOT / "modeling_sener" / "__init__.py")
    return root


class DemoServer:
    """
    `python space/app.py` on a free port. `url` is its address, `log` its output so far.

    Args:
        model: the value of SENER_MODEL; empty for the bundled models.
        limits: values that override those of space/limits.py.
        root: the checkout to run in.
        environment: further environment variables.
    """

    def __init__(self, model: Path | str, limits: dict | None = None, root: Path = ROOT, **environment):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        # A user's machine does not set these variables, so the demo must stay off the network without them.
        offline = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY")
        inherited = {name: value for name, value in os.environ.items() if name not in offline}
        settings = {"SENER_MODEL": str(model), "GRADIO_SERVER_PORT": port, "OMP_NUM_THREADS": "1"}
        code = WITHOUT_NETWORK.replace("{}", repr(limits or {}))
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-c", code], cwd=root, env={**inherited, **settings, **environment},
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.lines: list[str] = []
        self.url = None
        started = threading.Event()

        def read():
            for line in self.process.stdout:
                self.lines.append(line)
                found = re.search(r"Running on local URL: +(http://\S+)", line)
                if found:
                    self.url = found[1]
                    started.set()
            started.set()

        threading.Thread(target=read, daemon=True).start()
        started.wait(180)
        assert self.url, self.log

    @property
    def log(self) -> str:
        return "".join(self.lines)

    def stop(self):
        self.process.terminate()
        self.process.wait(30)
