"""The demo's choice of models: it offers those that are there, and loads each once, when it is asked for."""

import json
import shutil
from pathlib import Path

import models
import pytest
from app import Demo
from gradio_client import Client
from gradio_client.exceptions import AppError
from limits import DemoError
from models import CLAUSES, Models, on_offer
from playwright.sync_api import expect
from support.demo_browser import result, run, state
from support.demo_server import DemoServer, checkout, tiny_checkpoint
from support.toy import ROOT
from transformers import pipeline

from training.bundle import bundle
from training.common.models import MODELS


TEXT = "Ada Lovelace worked with Charles Babbage in London on the Analytical Engine . " * 3


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Three models that find different spans; two have no copy of the code."""
    folders = [tiny_checkpoint(tmp_path_factory.mktemp("model"), biaffine_size=size) for size in (8, 9, 10)]
    for i in (1, 2):
        bundle(folders[i], bare := folders[i].with_name("bare"))
        folders[i] = bare
    return dict(zip(("modeling_sener", "checkpoints/contracts", "checkpoints/biomedical"), folders, strict=True))


@pytest.fixture(scope="module")
def root(checkpoints, tmp_path_factory):
    return checkout(tmp_path_factory.mktemp("three") / "checkout", **checkpoints)


@pytest.fixture(scope="module")
def demo_server(root):
    server = DemoServer("", root=root)
    yield server
    server.stop()


def test_the_models_that_are_there_are_offered(root, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "ROOT", root)
    assert [offer.name for offer in on_offer(None)] == ["papers", "contracts", "biomedical"]
    only = checkout(tmp_path / "one", **{"checkpoints/biomedical": root / "checkpoints" / "biomedical"})
    monkeypatch.setattr(models, "ROOT", only)
    assert [offer.name for offer in on_offer("")] == ["biomedical"]
    (given,) = on_offer(str(root / "modeling_sener"))
    assert (given.source, given.title, len(given.examples)) == (str(root / "modeling_sener"), "modeling_sener", 3)
    monkeypatch.setattr(models, "ROOT", tmp_path)
    with pytest.raises(DemoError, match="there is no model. Name one: SENER_MODEL=FOLDER"):
        Models(on_offer(None))


def test_the_demo_and_the_commands_use_the_same_names_of_models():
    offered = {offer.name: Path(offer.source) for offer in on_offer(None)}
    assert offered.items() <= MODELS.items()
    assert models.ROOT.resolve() == ROOT and (ROOT / "modeling_sener") == MODELS["papers"]


def test_each_model_is_loaded_once_when_it_is_first_asked_for(root, monkeypatch):
    monkeypatch.setattr(models, "ROOT", root)
    loaded = []
    extractor = models.Extractor
    monkeypatch.setattr(models, "Extractor", lambda *given: loaded.append(given[0]) or extractor(*given))
    offered = Models(on_offer(None))
    assert loaded == [str(root / "modeling_sener")]
    for name in ("contracts", "papers", None, "contracts"):
        offered.get(name)
    assert loaded == [str(root / "modeling_sener"), str(root / "checkpoints" / "contracts")]
    assert offered.get() is offered.get("papers") is not offered.get("contracts")
    for name in ("/etc/passwd", "user/name@main", "", 3, ["papers"]):
        with pytest.raises(DemoError, match="this page has papers, contracts, biomedical"):
            offered.get(name)
    assert len(loaded) == 2


def test_a_model_that_cannot_be_loaded_leaves_the_others(root, checkpoints, tmp_path, monkeypatch):
    broken = tmp_path / "broken"
    shutil.copytree(checkpoints["checkpoints/contracts"], broken)
    (broken / "model.safetensors").write_bytes(b"x")
    places = {"modeling_sener": checkpoints["modeling_sener"], "checkpoints/contracts": broken}
    monkeypatch.setattr(models, "ROOT", checkout(tmp_path / "checkout", **places))
    demo = Demo(Models(on_offer(None)))
    (answer,) = demo.run(TEXT, "contracts")
    assert "contracts: the model cannot be loaded" in json.loads(answer)["error"]
    *_, answer = demo.run(TEXT, "papers")
    assert json.loads(answer)["result"]["model"] == "Machine-learning papers"


def test_the_api_takes_the_name_of_a_model(demo_server, checkpoints):
    client = Client(demo_server.url, verbose=False)
    found = {}
    for name, folder in (("papers", "modeling_sener"), ("biomedical", "checkpoints/biomedical")):
        extract = pipeline("entity-extraction", model=str(checkpoints[folder]), trust_remote_code=True)
        found[name] = client.predict(TEXT, 0.5, name, api_name="/extract")
        assert found[name] == extract(TEXT, threshold=0.5) != []
    found["contracts"] = client.predict(TEXT, threshold=0.5, model="contracts", api_name="/extract")
    assert client.predict(TEXT, 0.5, api_name="/extract") == found["papers"]
    assert len({json.dumps(entities) for entities in found.values()}) == 3
    with pytest.raises(AppError, match="model is 'proteins': this page has papers, contracts, biomedical"):
        client.predict(TEXT, 0.5, "proteins", api_name="/extract")


def test_the_page_reads_with_the_chosen_model(open_page, demo_server):
    client = Client(demo_server.url, verbose=False)
    page = open_page()
    for title, name in (("Contracts", "contracts"), ("Biomedical articles", "biomedical"),
                        ("Machine-learning papers", "papers")):  # fmt: skip
        page.get_by_role("radio", name=title).check()
        run(page, TEXT)
        expect(page.locator(".summary")).to_contain_text(title)
        assert result(page) == client.predict(TEXT, 0.5, name, api_name="/extract")
    page.get_by_role("button", name="A contract").click()
    state(page, "busy")
    state(page, "done")
    expect(page.get_by_role("radio", name="Contracts")).to_be_checked()
    expect(page.locator(".summary")).to_contain_text("Contracts")
    assert page.evaluate("sener.text") == (ROOT / "space/examples/contract.txt").read_text(encoding="utf-8")


def test_a_single_model_is_not_offered_as_a_choice(browser, demo_model):
    server = DemoServer(demo_model)
    try:
        page = browser.new_page()
        page.goto(server.url)
        page.wait_for_function("window.sener")
        assert page.locator("#model").count() == 0 or page.locator("#model").is_hidden()
        assert str(demo_model) not in page.content()
        page.close()
    finally:
        server.stop()


def test_each_label_of_contracts_is_in_one_group():
    labels = [label for _, members in CLAUSES for label in members]
    assert len(labels) == len(set(labels)) == 41
