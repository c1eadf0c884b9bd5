"""Long spans and many labels on the demo's page: brackets, the list by label, its search and its jumps."""

import re

import pytest
from models import CLAUSES
from playwright.sync_api import expect
from support.demo_browser import result, supply, visible_text
from support.toy import ROOT


LABELS = sorted(label for _, members in CLAUSES for label in members)
CONTRACT = (ROOT / "space/examples/contract.txt").read_text(encoding="utf-8")
CLAUSE_OF = {
    "License Grant": "2.1", "Non-Transferable License": "2.1", "Exclusivity": "3.1", "Non-Compete": "3.3",
    "Audit Rights": "7.2", "Cap on Liability": "11.2", "Insurance": "11.5", "Renewal Term": "12.2",
    "Governing Law": "13.3",
}  # fmt: skip


def clause(number):
    """(start, end) of a numbered clause's text."""
    return re.search(rf"(?m)^{re.escape(number)} (?:[A-Z][a-z-]+[a-z ]*\. )?(.+)$", CONTRACT).span(1)


@pytest.fixture
def contract(open_page):
    """Opens the page on the example contract, with supplied spans: clauses of nine labels, and two short spans."""

    def contract(width=1280):
        page = open_page(width=width)
        rows = [(*clause(number), LABELS.index(label), 0.9, 15) for label, number in CLAUSE_OF.items()]
        for label, words in (("Agreement Date", "14 March 2025"), ("Volume Restriction", "thirty (30) days")):
            start = CONTRACT.index(words)
            rows.append((start, start + len(words), LABELS.index(label), 0.6, 15))
        supply(page, CONTRACT, sorted(rows), labels=LABELS, groups=[[name, list(each)] for name, each in CLAUSES])
        return page

    return contract


def lines(page, selector):
    """[top, bottom] of each element of the text, over all of its lines."""
    return page.locator(selector).evaluate_all(
        """(nodes) => nodes.map((node) => {
          const lines = [...node.getClientRects()];
          return [Math.min(...lines.map((line) => line.top)), Math.max(...lines.map((line) => line.bottom))];
        })"""
    )


@pytest.mark.parametrize("width", [1280, 390])
def test_a_bracket_stands_beside_each_long_span(contract, width):
    page = contract(width)
    page.locator(".span").filter(has_text="Subject to the terms of this Agreement").first.click()
    for smaller in (0, 60):
        page.set_viewport_size({"width": width - smaller, "height": 900})
        page.wait_for_timeout(300)
        marks, brackets, left, right = page.evaluate(
            """() => {
              const all = (selector) => [...document.querySelectorAll(selector)];
              const lines = (node) => [...node.getClientRects()];
              const ends = (node) => [Math.min(...lines(node).map((line) => line.top)),
                                      Math.max(...lines(node).map((line) => line.bottom))];
              return [all("mark.long").map(ends), all(".bracket").map(ends),
                      sener.view.chunks[0].getBoundingClientRect().left,
                      all(".bracket").map((one) => one.getBoundingClientRect().right)];
            }"""
        )
        assert len(marks) >= 2 and min(bottom - top for top, bottom in marks) > 40
        for mark, bracket in zip(marks, brackets, strict=True):
            assert mark == pytest.approx(bracket, abs=1.5)
        assert max(right) <= left and len(set(right)) == 2  # one span with two labels: a lane for each


def of_all(page, selector, function):
    """
    The results of a function of JavaScript for each such element of the whole text. All chunks are filled first,
    within the same call: the page empties those out of sight.
    """
    return page.evaluate(
        f"""() => {{
          sener.view.chunks.forEach((_, index) => sener.view.fill(index));
          return [...document.querySelectorAll("{selector}")].map({function});
        }}"""
    )


def test_a_long_span_has_its_label_once_and_no_underline(contract):
    page = contract()
    labels = of_all(page, "mark.long", "(mark) => mark.dataset.label ?? null")
    assert sorted(filter(None, labels)) == sorted(CLAUSE_OF)
    assert set(of_all(page, "mark.long", "(mark) => getComputedStyle(mark).borderBottomWidth")) == {"0px"}
    assert of_all(page, "mark.short", "(mark) => getComputedStyle(mark).borderBottomWidth") == ["2px", "2px"]
    assert len(of_all(page, "mark.long mark.long", "() => 1")) > 0
    text = "x" * 1000 + " " + "long span " * 400
    supply(page, text, [(1001, len(text) - 1, 0, 0.9, 15)])
    assert visible_text(page) == text
    assert of_all(page, "mark.long", "(mark) => mark.dataset.label ?? null") == ["A", None, None]
    assert of_all(page, ".bracket", "(bracket) => bracket.className") == [
        "bracket hue-0 goes-on", "bracket hue-0 from-above goes-on", "bracket hue-0 from-above"
    ]  # fmt: skip


def test_nested_short_spans_have_one_underline_below_the_other(open_page):
    page = open_page()
    text = "the University of Oslo in Oslo, Norway"
    supply(page, text, [(0, 22, 0, 0.9, 15), (4, 22, 1, 0.9, 15), (18, 22, 2, 0.9, 15), (26, 30, 2, 0.9, 13)])
    assert page.locator("mark mark mark").all_inner_texts() == ["Oslo"]
    found = lines(page, "mark:has(mark)") + lines(page, "mark mark mark")
    bottoms = [bottom for _, bottom in found]
    assert (
        bottoms == sorted(bottoms, reverse=True) and min(a - b for a, b in zip(bottoms, bottoms[1:], strict=False)) > 2
    )
    page.get_by_label("Nested entities").uncheck()
    assert len(result(page)) == 3  # each span says which settings accept it


def test_labels_are_grouped_and_counted_and_labels_without_a_span_are_named(contract):
    page = contract()
    groups = page.locator(".group:not(.absent) h4").all_inner_texts()
    assert groups == ["Parties and dates\n2", "Term and end\n1", "Licence and ownership\n2",
                      "Liability and warranty\n2", "Competition\n2", "Money and volume\n1", "Control\n1"]  # fmt: skip
    found = page.locator(".label-name").all_inner_texts()
    absent = page.locator(".absent li").all_inner_texts()
    assert sorted(found + absent) == LABELS and len(found) == 11
    assert page.locator(".span bdi").count() == 11


def test_the_search_finds_labels_and_words(contract):
    page = contract()
    box = page.get_by_label("Search labels and text")
    box.fill("LIAB")
    assert page.locator(".label-name").all_inner_texts() == ["Cap on Liability", "Insurance"]  # by name, by its words
    assert page.locator(".absent li").all_inner_texts() == ["Uncapped Liability"]
    box.fill("<b>")
    expect(page.locator(".nothing")).to_have_text("No label and no span has \u201c<b>\u201d.")
    box.fill("")
    assert page.locator(".label-name").count() == 11


@pytest.mark.parametrize("width", [1280, 390])
def test_the_list_leads_to_the_clause(contract, width):
    page = contract(width)
    page.locator(".span").filter(has_text="This Agreement, and any non-contractual").click()
    mark = page.locator("mark.long.current")
    expect(mark).to_have_count(1)
    expect(mark).to_be_in_viewport()
    assert "laws of Ireland" in mark.inner_text()
    top = page.locator(".sener-text").bounding_box()["y"]
    assert top <= mark.evaluate("mark => mark.getClientRects()[0].top")
    assert page.locator(".bracket.current").count() == 1 == page.locator(".span[aria-current=true]").count()


def test_labels_are_all_hidden_all_shown_and_shown_by_a_jump(contract):
    page = contract()
    every = result(page)
    page.get_by_role("button", name="None").click()
    assert result(page) == [] and page.locator(".sener-text mark, .bracket").count() == 0
    page.locator(".span").filter(has_text="14 March 2025").click()
    assert [entity["text"] for entity in result(page)] == ["14 March 2025"]
    expect(page.locator("mark.current")).to_be_in_viewport()
    page.get_by_role("button", name="All", exact=True).click()
    assert result(page) == every


def test_many_spans_of_a_label_are_folded(open_page):
    page = open_page()
    supply(page, "a " * 200, [(2 * n, 2 * n + 1, 0, 0.9, 15) for n in range(200)])
    head = page.locator(".label-head")
    expect(head).to_have_attribute("aria-expanded", "false")
    assert page.locator(".span").count() == 0
    head.focus()
    page.keyboard.press("Enter")
    expect(head).to_be_focused()
    assert page.locator(".span").count() == 10
    page.get_by_role("button", name="50 more").click()
    assert page.locator(".span").count() == 60
    expect(page.locator(".span").nth(10)).to_be_focused()
