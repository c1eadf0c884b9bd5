"""Helpers for tests of the web demo's page."""

import json
import shutil

from playwright.sync_api import expect


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TIMEOUT = 60_000  # milliseconds, for machines that are busy
expect.set_options(timeout=TIMEOUT)


def paste(page, text):
    """Fill in the text at once, as a paste does: a key stroke for each character would be slow."""
    page.locator("#text textarea").evaluate(
        "(box, text) => { box.value = text; box.dispatchEvent(new Event('input', { bubbles: true })); }", text
    )


def state(page, name):
    expect(page.locator(".sener")).to_have_attribute("data-state", name)


def run(page, text):
    paste(page, text)
    page.click("#start")
    state(page, "done")


def result(page):
    """The entities that the page shows, in the form of the API's answer."""
    return json.loads(page.evaluate("asJson(sener.shown)"))


def visible_text(page):
    """The text in the view, collected by scrolling from the top to the end."""
    return json.loads(
        page.evaluate(
            """async () => {
              const box = sener.view.box;
              const parts = [];
              for (const chunk of box.children) {
                chunk.scrollIntoView();
                while (!chunk.hasChildNodes()) await new Promise(requestAnimationFrame);
                parts.push(chunk.textContent);
              }
              return JSON.stringify(parts.join(""));
            }"""
        )
    )


def supply(page, text, rows, labels=("A", "B", "C"), **fields):
    """Show these spans without running a model. `rows`: (start, end, label number, score, modes) of each span."""
    names = ("start", "end", "label", "score", "modes")
    columns = {name: [row[n] for row in rows] for n, name in enumerate(names)}
    shown = {"text": text, "labels": labels, "entities": columns, "words": len(text.split()), "nested": True,
             "floor": 0.05, "thresholds": dict.fromkeys(labels, 0.5), "model": "Supplied", "groups": [],
             **fields}  # fmt: skip
    page.evaluate("message => { sener.busy(); sener.receive(message); }", json.dumps({"result": shown}))
