"""The list of equations in modeling_sener.py is a map: each is cited in the file that the list names."""

import re

import pytest
from support.toy import ROOT


FOLDER = ROOT / "modeling_sener"
ENTRY = re.compile(r"^- (eq\. \d+), .*\((\w+\.py)\)$", re.MULTILINE)
LISTED = ENTRY.findall((FOLDER / "modeling_sener.py").read_text(encoding="utf-8"))


def test_equations_are_numbered_in_order():
    assert [number for number, _ in LISTED] == [f"eq. {i + 1}" for i in range(12)]


@pytest.mark.parametrize(("number", "file"), LISTED)
def test_an_equation_is_cited_where_it_is_computed(number, file):
    code = ENTRY.sub("", (FOLDER / file).read_text(encoding="utf-8"))
    assert re.search(rf"{re.escape(number)}\b", code)
