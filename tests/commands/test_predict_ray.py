"""predict_ray.py gives the output of predict.py, even if a node of the cluster is lost."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.predictions import assert_same, read, toy_checkpoint, toy_corpus, write_partial
from support.toy import ROOT

from training import predict


pytest.importorskip("ray", reason="Ray is not installed: pip install 'sener[cluster]'")
COUNTS = (700, 60, 1300)  # texts of each input
SETTINGS = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, three files, and the output of training/predict.py for them."""
    folder = tmp_path_factory.mktemp("cluster")
    toy_checkpoint(folder)
    inputs = [str(toy_corpus(folder / f"part{n}.jsonl", count)) for n, count in enumerate(COUNTS)]
    predict.main(["--model", str(folder / "model"), "--input", *inputs, "--output", str(folder / "expected.jsonl")])
    return folder


@pytest.fixture
def cluster():
    """Two nodes. The command runs on the first; `lose` ends the second."""
    from ray.cluster_utils import Cluster

    memory = {"object_store_memory": 100 * 2**20, "num_cpus": 2}
    cluster = Cluster(initialize_head=True, head_node_args={**memory, "include_dashboard": False})
    second = cluster.add_node(**memory)
    yield SimpleNamespace(address=cluster.address, lose=lambda: cluster.remove_node(second, allow_graceful=False),
                          raylet=second.all_processes["raylet"][0].process.pid)  # fmt: skip
    cluster.shutdown()


def start(folder, address, output, *more):
    command = [sys.executable, "training/predict_ray.py", "--model", folder / "model", "--output", output, *more,
               "--input", *(folder / f"part{n}.jsonl" for n in range(len(COUNTS)))]  # fmt: skip
    return subprocess.Popen([str(part) for part in command], cwd=ROOT, env={**os.environ, **SETTINGS, "RAY_ADDRESS":
                            address}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip


def actors_of(raylet):
    """The actors of a node that hold a model: children of its raylet with the class in their process title."""
    titles = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            title = (process / "cmdline").read_bytes().decode(errors="replace")
        except OSError:  # it has ended
            continue
        if parent == raylet and "ModelActor" in title:
            titles.append(title)
    return titles


@pytest.mark.slow
def test_a_node_lost_during_the_run_costs_no_text(folder, cluster, tmp_path):
    output = tmp_path / "out.jsonl"
    process, worked_there = start(folder, cluster.address, output), False
    aside = Path(f"{output}.partial")
    while process.poll() is None:
        worked_there = worked_there or bool(actors_of(cluster.raylet))
        if worked_there and aside.exists() and aside.stat().st_size:
            cluster.lose()
            break
        time.sleep(0.02)
    assert worked_there and process.poll() is None and not output.exists()
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors[-4000:]
    assert_same(read(output), read(folder / "expected.jsonl"))


@pytest.mark.slow
def test_a_run_of_the_cluster_is_resumed_and_a_fault_is_named(folder, cluster, tmp_path):
    output = tmp_path / "out.jsonl"
    lines = (folder / "expected.jsonl").read_bytes().splitlines(keepends=True)
    inputs = [folder / f"part{n}.jsonl" for n in range(len(COUNTS))]
    with write_partial(folder, inputs, output, lines[: COUNTS[0] + 10]).open("ab") as file:
        file.write(lines[COUNTS[0] + 10][:5])
    process = start(folder, cluster.address, output, "--resume")
    printed, errors = process.communicate(timeout=600)
    assert process.returncode == 0 and f"resumed after {COUNTS[0] + 10} texts" in printed, errors[-4000:]
    assert output.read_bytes().startswith(b"".join(lines[: COUNTS[0] + 10]))
    assert_same(read(output), read(folder / "expected.jsonl"))
    (folder / "part2.jsonl").write_text(json.dumps({"text": "a"}) + "\n" + json.dumps({"text": 3}) + "\n")
    process = start(folder, cluster.address, tmp_path / "other.jsonl")
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 1 and "Traceback" not in errors, errors[-4000:]
    assert f"error: {folder / 'part2.jsonl'}:2: text: expected a string or a list of words, found 3" in errors
