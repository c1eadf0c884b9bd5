"""
Load the demo on this machine: a server process, and many clients that speak Gradio's protocol.

    cd tests && python -m tools.demo_load --clients 50 --seconds 600
    cd tests && python -m tools.demo_load --clients 5 --seconds 600 --hostile

Each client sends texts of 5 to 8,000 words one after another, through the page's function or the API. The same text
must get the same answer each time. With `--hostile`, other clients break off, send garbage and hold connections open.
Prints answers, refusals by a full queue, errors by kind, percentiles of the response time, and the server's memory.
Exits with code 1 if a client met an error or the server has ended.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import math
import random
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

import httpx
import psutil
from gradio_client.utils import apply_diff
from support.demo_hostile import ATTACKS
from support.demo_server import DemoServer
from support.toy import ROOT
from tqdm import tqdm


PATIENCE = 600  # seconds that a client waits for an answer
NUM_TEXTS = 60


@dataclass
class Load:
    """
    The state that the clients share, and their observations.

    Attributes:
        functions: name of a function of the page -> its number in Gradio's protocol.
        ends: when the clients stop, by time.monotonic.
        answers: the first answer to each text, by function and text.
        seconds: of each answer.
        memory: of the server, (time, MB).
        waiting: the most requests in the queue.
    """

    url: str
    functions: dict[str, int]
    texts: list[str]
    ends: float
    answers: dict[tuple, str] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    refused: int = 0
    errors: Counter = field(default_factory=Counter)
    attacks: Counter = field(default_factory=Counter)
    memory: list[tuple[float, float]] = field(default_factory=list)
    waiting: int = 0

    def over(self) -> bool:
        return time.monotonic() > self.ends


def make_texts() -> list[str]:
    """Excerpts of the examples, repeated; the number of words is lognormal, with a median of 200."""
    words = 4 * [word for path in sorted((ROOT / "space/examples").glob("*.txt"))
                 for word in path.read_text(encoding="utf-8").split()]  # fmt: skip
    draw = random.Random(0)
    texts = []
    for _ in range(NUM_TEXTS):
        length = min(max(int(200 * math.exp(draw.gauss(0, 1.2))), 5), 8000)
        start = draw.randrange(len(words) - length)
        texts.append(" ".join(words[start : start + length]))
    return texts


async def ask(http: httpx.AsyncClient, session: str, function: int, data: list) -> list:
    """Call a function of the page; returns its outputs. Raises `ValueError` with the reason of a failure."""
    body = {"data": data, "fn_index": function, "session_hash": session}
    joined = await http.post("/gradio_api/queue/join", json=body)
    if joined.status_code != 200:
        raise ValueError(f"{joined.status_code}: {joined.text}")
    outputs = None
    async with http.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as stream:
        async for line in stream.aiter_lines():
            message = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {"msg": None}
            if message["msg"] == "unexpected_error" or message.get("success") is False:
                raise ValueError(message.get("message") or message["output"].get("error") or "an error without a word")
            if message["msg"] == "process_generating":  # the first output is complete, later ones are changes
                given = message["output"]["data"]
                outputs = list(map(apply_diff, outputs, given)) if outputs else given
            if message["msg"] == "process_completed":
                return outputs or message["output"]["data"]
    raise ValueError("the answer broke off")


def fault(load: Load, name: str, number: int, output) -> str | None:
    """The fault of an answer to text `number`; None if it is right."""
    text = load.texts[number]
    if name == "run":
        shown = json.loads(output)
        if "error" in shown:
            return shown["error"]
        if shown["result"]["text"] != text:
            return "another's answer"
        output = shown["result"]["entities"]
    elif any(text[entity["start"] : entity["end"]] != entity["text"] for entity in output):
        return "entities of another text"
    answer = json.dumps(output)
    return None if load.answers.setdefault((name, number), answer) == answer else "another answer than before"


async def client(load: Load, number: int) -> None:
    """One user, who opens a new page after every ten texts."""
    draw = random.Random(number)
    for count in itertools.count():
        async with httpx.AsyncClient(base_url=load.url, timeout=PATIENCE) as http:
            for _ in range(10):
                if load.over():
                    return
                name, text = draw.choice(("run", "extract")), draw.randrange(len(load.texts))
                given = [load.texts[text], None] if name == "run" else [load.texts[text], 0.5, None]
                started = time.monotonic()
                try:
                    (output,) = await ask(http, f"{number}-{count}", load.functions[name], given)
                    error = fault(load, name, text, output)
                except (httpx.HTTPError, ValueError) as failure:
                    error = str(failure) or type(failure).__name__
                if error and "Queue is full" in error:
                    load.refused += 1
                    await asyncio.sleep(1)
                elif error:
                    load.errors[error] += 1
                else:
                    load.seconds.append(time.monotonic() - started)


async def attack(load: Load, number: int) -> None:
    """One attacker, who draws one attack after another."""
    draw = random.Random(number)
    while not load.over():
        name, function = draw.choice(ATTACKS)
        try:
            await asyncio.wait_for(function(load, draw), 60)
        except (OSError, httpx.HTTPError, TimeoutError):
            pass  # client or server closed the connection
        load.attacks[name] += 1
        await asyncio.sleep(draw.random())


async def watch(load: Load, process: psutil.Process) -> None:
    """Record, each second, the memory of the server and its children in MB, and the length of the queue."""
    seconds = round(load.ends - time.monotonic())
    async with httpx.AsyncClient(base_url=load.url, timeout=PATIENCE) as http:
        for second in tqdm(range(seconds), unit="s"):
            total = 0
            for each in (process, *process.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    total += each.memory_info().rss
            load.memory.append((time.monotonic(), total / 1e6))
            try:
                status = await http.get("/gradio_api/queue/status")
                load.waiting = max(load.waiting, status.json()["queue_size"])
            except (httpx.HTTPError, ValueError) as error:
                load.errors[f"status: {type(error).__name__}"] += 1
            await asyncio.sleep(load.ends - seconds + second + 1 - time.monotonic())


async def run(load: Load, process: psutil.Process, clients: int, attackers: int) -> None:
    tasks = [client(load, number) for number in range(clients)]
    tasks += [attack(load, number) for number in range(attackers)]
    await asyncio.gather(watch(load, process), *tasks)


def slope(points: list[tuple[float, float]]) -> float:
    """The growth in MB per minute, over the second half of the points."""
    half = points[len(points) // 2 :]
    return 60 * statistics.linear_regression(*zip(*half, strict=True)).slope if len(half) > 1 else 0.0


def report(load: Load, server: DemoServer) -> None:
    seconds = sorted(load.seconds) or [float("nan")]
    at = {share: seconds[min(int(share * len(seconds)), len(seconds) - 1)] for share in (0.5, 0.9, 0.99)}
    peak = max(memory for _, memory in load.memory)
    print(f"answers           {len(load.seconds)}")
    print(f"queue was full    {load.refused}")
    print(f"errors            {sum(load.errors.values())}")
    for kind, count in load.errors.most_common():
        print(f"  {count} x {kind}")
    print("seconds to answer " + ", ".join(f"p{share * 100:g} {value:.2f}" for share, value in at.items()))
    print(f"most that waited  {load.waiting}")
    print(f"memory, MB        {load.memory[0][1]:.0f} at first, {peak:.0f} at most, {load.memory[-1][1]:.0f} at last; "
          f"{slope(load.memory):+.1f} a minute in the second half")  # fmt: skip
    for name, count in sorted(load.attacks.items()):
        print(f"  {count} x {name}")
    print(f"server            {'gone' if server.process.poll() is not None else 'there'}, "
          f"{server.log.count('Traceback')} tracebacks in its log")  # fmt: skip


def main(arguments: list[str] | None = None) -> Load:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--hostile", action="store_true", help="add 20 attackers")
    parser.add_argument("--model", default="", help="folder of a checkpoint (default: the bundled one)")
    parser.add_argument("--threads", default="2", help="threads of the server's model")
    options = parser.parse_args(arguments)
    server = DemoServer(options.model, OMP_NUM_THREADS=options.threads)
    try:
        config = httpx.get(f"{server.url}/config").json()
        functions = {each["api_name"]: each["id"] for each in config["dependencies"]}
        load = Load(server.url, functions, make_texts(), time.monotonic() + options.seconds)
        asyncio.run(run(load, psutil.Process(server.process.pid), options.clients, 20 if options.hostile else 0))
        report(load, server)
        if server.process.poll() is not None:
            load.errors["the server is gone"] += 1
    finally:
        server.stop()
    return load


if __name__ == "__main__":
    sys.exit(1 if main().errors else 0)
