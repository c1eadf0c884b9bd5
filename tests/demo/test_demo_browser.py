"""The demo as users see it: in a real browser and through gradio_client, from a server without a network."""

import csv
import io
import json

import lxml.html
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from playwright.sync_api import expect
from support.demo_browser import paste, result, run, state, supply, visible_text
from support.demo_server import DemoServer
from support.toy import LABELS, ROOT
from transformers import pipeline


TEXT = (
    "We train ResNet-50 on ImageNet and report 93.5 % top-1 accuracy.\r\n\r\nAda \U0001f469\u200d\U0001f52c Lovelace "
    "worked with Charles Babbage in London on the Analytical Engine.\nArrow attention scores the span tensor.\n"
) * 3  # fmt: skip


def test_pasted_text_is_marked_with_the_pipelines_entities(open_page, demo_model, client):
    page = open_page()
    expect(page.locator(".panel-empty")).to_be_visible()
    run(page, TEXT)
    text = page.locator("#text textarea").input_value()  # a text area has no CR
    assert text == TEXT.replace("\r\n", "\n")
    expected = pipeline("entity-extraction", model=str(demo_model), trust_remote_code=True)(text, threshold=0.5)
    assert len(expected) > 30 and result(page) == expected
    assert client.predict(text, 0.5, api_name="/extract") == expected
    assert visible_text(page) == text
    marks = page.locator(".sener-text mark")
    assert marks.count() == len(expected)
    assert sorted(marks.evaluate_all("marks => marks.map((mark) => mark.textContent)")) == sorted(
        entity["text"] for entity in expected
    )
    assert page.locator(".sener-text mark mark").count() > 0


def test_threshold_labels_and_nesting_filter_without_a_new_run(open_page, demo_model, client):
    extract = pipeline("entity-extraction", model=str(demo_model), trust_remote_code=True)
    page = open_page()
    text = TEXT.replace("\r\n", "\n")
    run(page, text)
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    for threshold in (0.05, 0.31, 0.9):
        page.locator(".threshold input").fill(str(threshold))
        assert result(page) == client.predict(text, threshold, api_name="/extract")
        page.get_by_label("Nested entities").uncheck()
        flat = result(page)
        assert flat == extract(text, threshold=threshold, allow_nested=False)
        page.get_by_label("Nested entities").check()
    assert len(flat) > 3
    page.locator(".threshold input").fill("0.5")
    before = result(page)
    label = before[0]["label"]
    switch = page.get_by_label(f"Show {label}")
    switch.focus()
    page.keyboard.press("Space")
    expect(switch).not_to_be_checked()
    expect(switch).to_be_focused()
    assert result(page) == [entity for entity in before if entity["label"] != label] != before
    assert page.locator(".sener-text mark").count() == len(result(page))
    switch.click()
    assert result(page) == before
    counts = page.locator(".label-head").all_inner_texts()
    expected = [f"{label}\n{sum(entity['label'] == label for entity in before)}" for label in LABELS]
    assert counts == [each for each in expected if not each.endswith("\n0")]
    assert not requests


def test_the_models_own_thresholds_apply_per_label(open_page):
    page = open_page()
    rows = [(0, 1, 0, 0.3, 15), (2, 3, 1, 0.6, 3), (4, 5, 2, 0.8, 15)]
    supply(page, "a b c", rows, thresholds={"A": 0.2, "B": 0.7, "C": 0.5})
    assert [entity["label"] for entity in result(page)] == ["A", "C"]
    page.locator(".threshold input").fill("0.5")
    assert [entity["label"] for entity in result(page)] == ["B", "C"]
    page.get_by_role("button", name="Model's thresholds").click()
    assert [entity["label"] for entity in result(page)] == ["A", "C"]


def test_the_table_sorts_and_leads_to_the_place(open_page):
    page = open_page()
    words = [f"word{n:05d}" for n in range(100_000)]
    text = " ".join(words)
    rows = [(start, start + 9, n % 3, (n * 37 % 100) / 100, 15) for n, start in enumerate(range(0, len(text), 100))]
    supply(page, text, rows, thresholds=dict.fromkeys("ABC", 0.05))
    nodes = "document.querySelectorAll('.sener-text *').length"
    assert page.evaluate(nodes) < 2000  # the page only holds chunks in sight
    page.get_by_role("button", name="Table").click()
    head = page.get_by_role("button", name="Score")
    head.click()
    head.click()
    expect(page.locator("th").nth(2)).to_have_attribute("aria-sort", "descending")
    scores = [float(score) for score in page.locator("tbody td:nth-child(3)").all_inner_texts()]
    assert len(scores) == 50 and scores == sorted(scores, reverse=True) and scores[0] == 0.99
    page.get_by_role("button", name="Position").click()
    page.get_by_role("button", name="Position").click()
    place = page.locator("tbody button").first
    assert place.inner_text() == "word99990"
    place.focus()
    page.keyboard.press("Enter")
    mark = page.locator(".sener-text mark.current")
    expect(mark).to_have_text("word99990")
    expect(mark).to_be_in_viewport()
    assert page.evaluate(nodes) < 2000
    page.get_by_role("button", name="Next rows").click()
    expect(page.locator(".range")).to_have_text(f"51\u2013100 of {len(result(page)):,}")
    assert visible_text(page) == text
    page.wait_for_function(f"{nodes} < 2000")  # chunks that were scrolled past are emptied


def test_downloads_hold_the_shown_entities(open_page, browser, client, tmp_path):
    page = open_page()
    text = '=1+1, ResNet & <b>ImageNet</b> \u202e \U0001f600 "quoted" ]]> </main>\n' + TEXT.replace("\r\n", "\n")
    run(page, text)
    expected = client.predict(text, 0.5, api_name="/extract")

    def download(name):
        with page.expect_download() as download:
            page.get_by_role("button", name=name, exact=True).click()
        assert download.value.suggested_filename == f"entities.{name.lower()}"
        download.value.save_as(tmp_path / download.value.suggested_filename)
        return (tmp_path / download.value.suggested_filename).read_bytes().decode("utf-8")

    assert json.loads(download("JSON")) == expected
    rows = list(csv.DictReader(io.StringIO(download("CSV"), newline="")))
    assert [{**row, "text": row["text"].removeprefix("'")} for row in rows] == [
        {name: str(value) for name, value in entity.items()} for entity in expected
    ]
    assert not [row for row in rows if row["text"].startswith(("=", "+", "-", "@"))]
    content = download("HTML")
    assert "<script" not in content
    context = browser.new_context(java_script_enabled=False)
    saved = context.new_page()
    requests = []
    saved.on("request", lambda request: requests.append(request.url))
    saved.goto((tmp_path / "entities.html").as_uri())
    assert saved.locator("main").text_content() == text
    assert saved.locator("main mark").evaluate_all("marks => marks.map((mark) => mark.textContent)") == [
        entity["text"] for entity in sorted(expected, key=lambda e: (e["start"], -e["end"], LABELS.index(e["label"])))
    ]
    assert len(requests) == 1
    text = "\na\rb\r\n<c>&amp;"
    supply(page, text, [(1, 4, 0, 0.9, 15)])
    download("HTML")
    saved.goto((tmp_path / "entities.html").as_uri())
    assert saved.locator("main").text_content() == text and saved.locator("mark").text_content() == "a\rb"
    context.close()


def test_files_examples_and_records(open_page, tmp_path):
    page = open_page()
    box = page.locator("#text textarea")

    def upload(name, content):
        (tmp_path / name).write_bytes(content)
        remove = page.get_by_role("button", name="Clear")
        if remove.count():
            remove.first.click()
        page.locator("input[type=file]").set_input_files(tmp_path / name)

    upload("a.txt", "Caf\u00e9 \U0001f600 line\nnext".encode())
    expect(box).to_have_value("Caf\u00e9 \U0001f600 line\nnext")
    upload("a.md", b"London\r\nand\rParis")
    expect(box).to_have_value("London\nand\nParis")
    page.click("#start")
    state(page, "done")
    assert page.evaluate("sener.text") == "London\r\nand\rParis"  # so offsets are the file's own
    upload("b.html", b"<title>no</title><p>seen &lt;b&gt;<script>no</script>")
    expect(box).to_have_value("seen <b>\n")
    upload("c.jsonl", b'{"id": "x", "text": "first"}\n{"doc_id": "y", "text": ["second", "text"]}\n')
    expect(box).to_have_value("first")
    page.get_by_label("Text of the file").click()
    page.get_by_role("option", name="2: y").click()
    expect(box).to_have_value("second text")
    upload("d.txt", b"\xff\xff")
    state(page, "error")
    expect(page.locator(".panel-error")).to_contain_text("d.txt: not UTF-8 text")
    for title, name in (("A paper", "paper"), ("A contract", "contract"), ("A biomedical article", "article")):
        page.get_by_role("button", name=title).click()
        state(page, "busy")
        state(page, "done")
        text = (ROOT / f"space/examples/{name}.txt").read_text(encoding="utf-8")
        assert page.evaluate("sener.text") == text and len(result(page)) > 100


def test_hostile_text_is_shown_as_text(open_page):
    page = open_page()
    hostile = (
        "<script>window.pwned = 1</script> <img src=x onerror='window.pwned = 1'> ${window.pwned = 1} {{this}} "
        "`x` \u202e\u2066 \u200f </textarea></section> &lt;b&gt; \U0001f1e9\U0001f1ea e\u0301 " + "y" * 1500 + "\n"
    )
    text = hostile * (990_000 // len(hostile))
    run(page, text)
    assert page.evaluate("window.pwned") is None
    assert page.locator(".sener-text script, .sener-text img").count() == 0
    assert page.evaluate("sener.text") == text and len(result(page)) > 1000
    # Chunks that are filled above the last one may push it out of sight again.
    page.wait_for_function("(sener.view.chunks.at(-1).scrollIntoView(), sener.view.chunks.at(-1).hasChildNodes())")
    expect(page.locator(".sener-text > div").last).to_contain_text("</textarea></section>")
    page.evaluate("sener.view.chunks.at(-1).scrollIntoView()")  # by now, the chunks above it have their heights
    expect(page.locator(".sener-text > div").last).to_be_in_viewport()
    assert page.evaluate("document.querySelectorAll('.sener-text *').length") < 5000


def test_hostile_names_are_shown_as_text(open_page, tmp_path):
    page = open_page()
    hostile = "<img src=x onerror='window.pwned = 1'>\"</script></style><script>window.pwned = 1</script>"
    supply(page, "a b", [(0, 1, 0, 0.9, 15), (2, 3, 1, 0.9, 15)], labels=[hostile, "javascript:window.pwned = 1"])
    assert page.locator(".label-name").all_inner_texts() == [hostile, "javascript:window.pwned = 1"]
    with page.expect_download() as download:
        page.get_by_role("button", name="HTML").click()
    saved = lxml.html.parse(download.value.path()).getroot()
    assert hostile in saved.xpath("//mark/@data-label") and not saved.xpath(
        "//script | //img | //@*[starts-with(name(), 'on')]"
    )

    (tmp_path / "<img src=x onerror=pwned()>.txt").write_bytes(b"\xff\xff")
    page.locator("input[type=file]").set_input_files(tmp_path / "<img src=x onerror=pwned()>.txt")
    state(page, "error")
    expect(page.locator(".panel-error")).to_contain_text("img src=x onerror=pwned().txt: not UTF-8 text")
    expect(page.locator(".file-preview")).to_be_visible()
    expect(page.locator(".file-preview a")).to_be_hidden()  # the server would refuse this link
    page.get_by_role("button", name="Clear").first.click()
    lines = [json.dumps({"id": hostile, "text": f"{hostile} {number}"}) for number in range(2)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    page.locator("input[type=file]").set_input_files(tmp_path / "a.jsonl")
    expect(page.locator("#text textarea")).to_have_value(f"{hostile} 0")
    page.get_by_label("Text of the file").click()
    page.get_by_role("option", name=f"2: {hostile}"[:100]).click()
    expect(page.locator("#text textarea")).to_have_value(f"{hostile} 1")
    assert page.evaluate("window.pwned") is None
    assert page.locator(".gradio-container img[src=x], .gradio-container script").count() == 0


def test_a_text_over_a_limit_is_refused_and_not_cut(open_page, client):
    page = open_page()
    paste(page, "word " * 200_001)
    page.click("#start")
    state(page, "error")
    expect(page.locator(".panel-error")).to_contain_text("1,000,005 characters; this page takes up to 1,000,000")
    assert len(page.locator("#text textarea").input_value()) == 1_000_005
    paste(page, "a " * 250_000)
    page.click("#start")
    expect(page.locator(".panel-error")).to_contain_text("250,002 tokens")
    with pytest.raises(AppError, match="1,000,001 characters"):
        client.predict("a" * 1_000_001, 0.5, api_name="/extract")
    with pytest.raises(AppError, match="expected a number from 0 to 1"):
        client.predict("a", 1.5, api_name="/extract")
    paste(page, "a" * 13_000_000)
    page.click("#start")
    expect(page.locator(".panel-error")).to_contain_text("the text is far too long")
    paste(page, " \n")
    page.click("#start")
    expect(page.locator(".panel-error")).to_contain_text("There is no text yet")
    run(page, "A short text.")


def test_the_model_is_free_after_cancel(open_page):
    page = open_page()
    paste(page, "train " * 60_000)
    page.click("#start")
    page.wait_for_function("Number(document.querySelector('.bar').getAttribute('aria-valuenow')) > 0")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".panel-empty")).to_be_visible()
    run(page, "A short text.")
    assert page.evaluate("sener.text") == "A short text."


def test_two_users_at_once_get_their_own_results(open_page):
    first, second = open_page(), open_page()
    texts = ["Ada Lovelace " * 3000, "ImageNet and ResNet " * 100]
    paste(first, texts[0])
    paste(second, texts[1])
    first.click("#start")
    first.wait_for_function("document.querySelector('.sener').dataset.state === 'busy'")
    second.click("#start")
    state(second, "done")
    state(first, "done")
    assert [page.evaluate("sener.text") for page in (first, second)] == texts


def test_the_bundled_model_runs_without_settings(tmp_path):
    server = DemoServer("", HF_HOME=str(tmp_path))
    try:
        text = "We train ResNet-50 on ImageNet for image classification."
        entities = Client(server.url, verbose=False).predict(text, api_name="/extract")
        assert [entity["text"] for entity in entities if entity["label"] == "Method"] == ["ResNet-50"]
        assert "NETWORK" not in server.log
    finally:
        server.stop()
