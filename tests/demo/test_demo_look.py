"""The look of the demo's page: every character in its place, contrast, phones, the keyboard."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from playwright.sync_api import expect
from support.demo_browser import result, state, supply, visible_text


# Code points that break some program: controls, line ends, combining marks, emoji (two units of UTF-16), lone
# surrogates, letters from right to left.
CHARACTERS = (
    st.sampled_from("ab \n\r\t\x00\x0b\u0301\u200d\u202e\u2028\u05d0\ufeff\U0001f600\U0001f1e9\udc00\ud800&<\"'")
    | st.characters()
)


@st.composite
def marked_texts(draw):
    """Draw a text, and spans in it of which no two cross."""
    times = draw(st.sampled_from([1, 100]))
    text = draw(st.text(CHARACTERS, min_size=1 if times == 1 else 40, max_size=60)) * times
    # Readers of JSON join two surrogates that follow each other to one character.
    text = json.loads(json.dumps(text))
    spans = []
    ends = st.integers(0, len(text))
    for start, end in draw(st.lists(st.tuples(ends, ends), max_size=12)):
        crosses = any(a < start < b < end or start < a < end < b for a, b, _ in spans)
        if start < end and not crosses:
            spans.append((start, end, draw(st.integers(0, 2))))
    return text, sorted(set(spans))


def test_the_page_shows_the_text_and_its_spans_exactly(open_page):
    page = open_page()
    cases = []
    settings(max_examples=60, database=None, deadline=None)(given(marked_texts())(lambda case: cases.append(case)))()
    cases.append(("a" + "\U0001f600" * 3000, []))
    cases.append(("x" * 1999 + "\r\n" + "y" * 99, []))
    for text, spans in cases:
        supply(page, text, [(*span, 0.9, 15) for span in spans])
        assert visible_text(page) == text
        between = json.loads(
            page.evaluate("JSON.stringify(sener.view.starts.slice(1).map((at) => sener.text.slice(at - 1, at + 1)))")
        )
        # Around each border of chunks: no CR LF, and no single code point, which would be cut in two.
        assert not [pair for pair in between if pair == "\r\n" or len(pair) == 1]
        marks = page.evaluate(
            """() => {
              const parts = new Map();
              for (const mark of document.querySelectorAll(".sener-text mark")) {
                parts.set(mark.dataset.number, (parts.get(mark.dataset.number) ?? "") + mark.textContent);
              }
              return JSON.stringify([...parts].sort((a, b) => a[0] - b[0]).map((part) => part[1]));
            }"""
        )
        if page.evaluate("sener.view.chunks.every((chunk) => chunk.hasChildNodes())"):
            assert json.loads(marks) == [text[start:end] for start, end, _ in spans]
        assert [entity["text"] for entity in result(page)] == [text[start:end] for start, end, _ in spans]
    assert sum(len(spans) > 1 for _, spans in cases) > 5
    assert sum(len(text) > 2000 for text, _ in cases) > 5


# [name, colour, colour behind it, least contrast] of each text, line and bracket that is visible.
COLOURS = """() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const colour = channels(getComputedStyle(node).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
  };
  const found = [];
  const add = (name, ink, paper, least) => found.push([name, channels(ink), paper, least]);
  for (const node of document.querySelectorAll("mark")) {
    const long = node.classList.contains("long");
    const [style, tag] = [getComputedStyle(node), getComputedStyle(node, long ? "::before" : "::after")];
    add("mark", style.color, behind(node), 4.5);
    if (node.dataset.label) add(long ? "long label" : "label", tag.color, channels(tag.backgroundColor), 4.5);
    if (!long) add("underline", style.borderBottomColor, behind(node.parentElement), 3);
    if (!long) add("underline on its tint", style.borderBottomColor, behind(node), 3);
  }
  for (const node of document.querySelectorAll(".bracket")) {
    add("bracket", getComputedStyle(node).borderLeftColor, behind(node.parentElement), 3);
  }
  const texts = ".sener .chip, .summary, .plain:not(:disabled), th button, td, td button, .count, .label-name, .span,"
    + ".score, .absent li, .labels h4, #model label span, .intro p, .hint p, #start, .examples button,"
    + "#text label span, footer button, .panel p, .sener h3";
  for (const node of document.querySelectorAll(texts)) {
    if (node.checkVisibility()) add(node.className || node.tagName, getComputedStyle(node).color, behind(node), 4.5);
  }
  const box = document.querySelector("#text textarea");
  add("placeholder", getComputedStyle(box, "::placeholder").color, behind(box), 4.5);
  return found;
}"""


def contrast(ink, paper):
    """WCAG 2's contrast ratio of two sRGB colours, 0..255."""

    def luminance(colour):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (x / 255 for x in colour[:3])]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    lighter, darker = sorted((luminance(ink), luminance(paper)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_texts_lines_and_brackets_have_enough_contrast(open_page, theme):
    page = open_page(theme)
    labels = [f"L{n}" for n in range(10)]
    for message in ({"error": "An error"}, None):
        if message:
            page.evaluate("message => sener.receive(message)", json.dumps(message))
        else:
            rows = [(3 * n, 3 * n + 2, n, 0.9, 15) for n in range(10)]
            rows += [(100 + 300 * n, 400 + 300 * n, n, 0.9, 15) for n in range(10)]
            rows += [(110 + 300 * n, 115 + 300 * n, (n + 1) % 10, 0.9, 15) for n in range(10)]
            supply(page, "ab " * 1100, rows, labels=[*labels, "Absent"], groups=[["A group", labels[:5]]])
            page.get_by_role("button", name="L1 3").click()
            page.locator(".span").first.click()
            visible_text(page)
        colours = page.evaluate(COLOURS)
        if not message:
            page.get_by_role("button", name="Table").click()
            colours += page.evaluate(COLOURS)
        low = [(name, ink, paper) for name, ink, paper, least in colours if contrast(ink, paper) < least]
        assert not low
    names = {name for name, *_ in colours}
    assert {"mark", "label", "long label", "underline", "bracket", "span", "TD", "placeholder", "summary"} <= names
    assert len({tuple(paper) for name, _, paper, _ in colours if name == "label"}) == 10


def test_phone_width_has_no_sideways_scrolling(open_page):
    page = open_page(width=390)
    wide = "document.documentElement.scrollWidth > 390 || document.querySelector('.sener-text').scrollWidth > 390"
    assert not page.evaluate(wide)
    page.evaluate("message => sener.receive(message)", json.dumps({"error": "x" * 500}))
    assert not page.evaluate(wide)
    text = "unbroken" * 200 + " and a text"
    supply(page, text, [(0, 1600, 0, 0.9, 15), (0, 8, 1, 0.9, 15)], labels=["A long label's name " * 3, "B"])
    assert not page.evaluate(wide)
    page.get_by_role("button", name="Table").click()
    expect(page.locator("tbody td").first).to_be_visible()
    assert not page.evaluate(wide)


def test_everything_can_be_reached_by_keyboard(open_page):
    page = open_page()
    page.locator("#text textarea").focus()
    page.keyboard.insert_text("Ada Lovelace worked with Charles Babbage in London")
    page.keyboard.press("Shift+Enter")
    state(page, "done")
    page.get_by_label("Nested entities").focus()
    reached = set()
    for _ in range(40):
        reached.add(page.evaluate("document.activeElement.dataset.do ?? document.activeElement.className"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        if page.evaluate("document.activeElement.closest('.sener') !== null"):
            assert outline == "solid"
        page.keyboard.press("Tab")
    assert {"sener-text", "labels", "table", "label-head", "span", "json", "csv", "html"} <= reached
    page.locator(".threshold input").focus()
    page.keyboard.press("End")
    assert result(page) == []
