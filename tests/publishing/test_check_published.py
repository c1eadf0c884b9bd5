"""The check of a folder before it is published: the faults that it finds, and the isolation of its interpreter."""

import importlib.metadata
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import transformers
from safetensors.torch import load_file, save_file
from support.demo_server import tiny_checkpoint
from support.environments import make_environment
from support.golden_checkpoints import CARD
from support.toy import ROOT

from training.publishing.check_published import (
    COMMIT,
    TEXTS,
    check_published_folder,
    file_faults,
    lay_out_cache,
    link_packages,
    record,
    run_isolated,
)


SETTINGS = ["config", "token_ids", "threads", "model", "pipeline", "float32", "float16", "bfloat16", "saved_again"]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tiny_checkpoint(tmp_path_factory.mktemp("published"))
    shutil.rmtree(folder / "checkpoints")
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.fixture
def folder(published, tmp_path):
    return shutil.copytree(published, tmp_path / "folder")


def place_of(folder, recorded, place):
    """Prepare the folder that `run_isolated` needs."""
    shutil.copytree(folder, place / "copy")
    (place / "recorded.json").write_text(json.dumps(recorded))
    shutil.copyfile(ROOT / "training" / "publishing" / "load_published.py", place / "load_published.py")
    return place


def test_a_complete_folder_has_no_fault(published):
    assert file_faults(published) == []


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "README.md", "model.safetensors", "band.py"])
def test_a_missing_file_is_named(name, folder):
    (folder / name).unlink()
    assert file_faults(folder) == [f"{name} is missing"]


@pytest.mark.parametrize("name", ["optimizer.pt", "checkpoints/state.bin", "notes.txt", "more.py"])
def test_a_file_that_does_not_belong_is_named(name, folder):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("")
    assert file_faults(folder) == [f"{name} is no file of a published model"]


def test_code_is_the_repositorys_byte_for_byte(folder):
    with (folder / "decoding.py").open("a") as code:
        code.write("\n")
    assert file_faults(folder) == ["decoding.py is not the repository's"]


def test_a_card_needs_its_header(folder):
    (folder / "README.md").write_text(CARD.replace("license: apache-2.0\n", ""))
    assert file_faults(folder) == ["README.md: the header has no license"]
    (folder / "README.md").write_text(CARD.replace("tags: [sener]", "tags: [sener"))
    (message,) = file_faults(folder)
    assert message.startswith("README.md: the header is not valid YAML: ")


def test_only_required_packages_are_linked(tmp_path):
    site = link_packages(tmp_path / "site", ["torch", "transformers"])
    names = {each.metadata["Name"].lower() for each in importlib.metadata.distributions(path=[str(site)])}
    assert {"torch", "transformers", "tokenizers", "safetensors", "numpy"} <= names
    assert not names & {"accelerate", "peft", "datasets", "gradio", "pytest", "sener"}
    assert "accelerate" in os.listdir(link_packages(tmp_path / "more", ["torch", "transformers", "accelerate"]))


def test_the_cache_is_laid_out_as_the_hubs(published, tmp_path):
    lay_out_cache(published, tmp_path)
    found = transformers.utils.cached_file("someone/sener", "config.json", cache_dir=tmp_path, local_files_only=True)
    assert COMMIT in found and Path(found).is_symlink() and Path(found).resolve().parent.name == "blobs"
    assert Path(found).read_bytes() == (published / "config.json").read_bytes()


def test_every_span_is_recorded(published):
    ours = record(published)
    assert any(ours["entities"]) and ours["texts"] == TEXTS
    # The expected spans: every pair of words within the span window, for every label.
    words = [max(row) for row in ours["word_index"]]
    window = json.loads((published / "config.json").read_text())["span_window"]
    spans = {(text, i, j + 1, label) for text, n in enumerate(words) for i in range(n)
             for j in range(i, min(i + window + 1, n)) for label in range(len(ours["labels"]))}  # fmt: skip
    *columns, scores = ours["every_span"]
    assert set(zip(*columns, strict=True)) == spans and len(scores) == len(spans)


def test_an_isolated_interpreter_gets_the_recorded_results(published, tmp_path):
    found = run_isolated(place_of(published, record(published), tmp_path), "run", "cache", False, None)
    assert found["failures"] == [] and list(found["passed"]) == ["alone", *SETTINGS]
    assert found["passed"]["model"] < 1e-5 < found["passed"]["bfloat16"]
    assert found["versions"]["transformers"] == transformers.__version__ and "accelerate" not in found["versions"]
    assert {"torch", "transformers"} < set(found["packages"])
    assert not set(found["packages"]) & {"accelerate", "peft", "datasets", "sener"}
    assert not list((tmp_path / "run" / "home").iterdir())


# Code that writes to the home and connects to the network; both must be reported.
FAULT = """
import pathlib, socket
for attempt in (lambda: pathlib.Path.home().joinpath("seen").write_text(""),
                lambda: socket.create_connection(("example.com", 80), 1)):
    try:
        attempt()
    except OSError:
        pass
"""


def change_weights(folder):
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"] += 0.1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.slow
def test_every_difference_from_the_recorded_results_is_found_in_one_run(published, folder, tmp_path):
    recorded = record(published)
    change_weights(folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"] = None
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with (folder / "decoding.py").open("a") as code:
        code.write(FAULT)
    found = run_isolated(place_of(folder, recorded, tmp_path / "place"), "run", "folder", False, None)
    assert list(found["passed"]) == ["alone", "config", "threads"]
    failures = "\n".join(found["failures"])
    changed = "saved_again: save_pretrained wrote other code than the repository's: decoding.py"
    wanted = ["token_ids: input_ids of 'We train", "model: ", "pipeline: ", changed, "isolation: open ",
              "isolation: socket."]  # fmt: skip
    for start in wanted:
        assert f"\n{start}" in f"\n{failures}", failures


@pytest.mark.slow
def test_weights_alone_are_compared_by_their_scores(published, folder, tmp_path):
    recorded = record(published)
    change_weights(folder)
    found = run_isolated(place_of(folder, recorded, tmp_path / "place"), "run", "folder", False, None)
    failures = "\n".join(found["failures"])
    assert "model: scores differ by up to 0.0" in failures and "token_ids" in found["passed"]


@pytest.mark.slow
def test_code_that_needs_more_than_torch_and_transformers_is_found(published, folder, tmp_path):
    recorded = record(published)
    with (folder / "decoding.py").open("a") as code:
        code.write("\nimport peft\n")
    found = run_isolated(place_of(folder, recorded, tmp_path / "place"), "run", "folder", False, None)
    assert any("peft" in failure for failure in found["failures"])
    assert not {"model", "pipeline"} & set(found["passed"])


@pytest.mark.slow
def test_the_whole_check_finds_nothing_in_the_bundled_model():
    result = check_published_folder(ROOT / "modeling_sener")
    assert result.failures == []
    wanted = ["files", *(f"{name} ({source})" for source in ("folder", "cache") for name in ("alone", *SETTINGS))]
    assert list(result.passed) == [*wanted, "device_map (folder)"]
    assert result.versions["accelerate"] == importlib.metadata.version("accelerate")


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["accelerate"]], ids=["alone", "accelerate"])
def test_the_bundled_model_in_a_new_environment(more, request):
    """An environment with pip's torch and transformers, created once (2 GB) and kept in pytest's cache."""
    folder = request.config.cache.mkdir("_".join(["published", *more]))
    versions = {name: importlib.metadata.version(name).split("+")[0] for name in ("torch", "transformers", *more)}
    python = make_environment(folder / "environment", [f"{name}=={version}" for name, version in versions.items()])
    result = check_published_folder(ROOT / "modeling_sener", python)
    assert result.failures == []
    assert {name: result.versions[name].split("+")[0] for name in versions} == versions
    assert ("device_map (folder)" in result.passed) == bool(more)
    assert not set(result.packages) & {"peft", "datasets", "gradio", "sener"}


@pytest.mark.slow
def test_an_environment_that_cannot_be_made_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ValueError, match="pip install no-such-package-at-all: .*no-such-package-at-all"):
        make_environment(tmp_path / "environment", ["no-such-package-at-all"])
    assert not (tmp_path / "environment" / "requirements.txt").exists()


def test_a_failure_of_the_isolated_interpreter_is_reported(published, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('no torch for you')\n")
    python.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    found = run_isolated(place_of(published, record(published), tmp_path), "run", "folder", False, "./python")
    assert found["failures"] == ["the interpreter failed: no torch for you"]
