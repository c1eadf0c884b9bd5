"""Offsets in other units and wrong quotes are detected and named, and following the message's advice helps."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.importing import import_files, marked
from support.toy import ROOT, python, write_jsonl

from training.corpus.data import DataError
from training.importing.offsets import UNITS, Ruler, is_quote, unit_starts


TEXT = "👨🏻\u200d🚒 firemen drive firetrucks in Zürich, naïve 😀 drivers own Škodas ."
QUOTES = {"firemen": "Person", "firetrucks": "Thing", "Zürich": "Place", "drivers": "Person", "Škodas": "Thing"}
CHARACTERS = st.one_of(st.sampled_from("ab é東😀👨🏻\u200d\ud800\n"), st.characters())


def units(text, unit):
    """The length of a text in a unit, as Python's encoders count it."""
    if unit == "characters":
        return len(text)
    if unit == "utf-8":
        return len(text.encode("utf-8", "surrogatepass"))
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def spans(unit, shift=(0, 0), text=TEXT):
    """(start, end, label, quote) of the marked words, with offsets in a unit."""
    for quote, label in QUOTES.items():
        start = text.index(quote)
        end = start + len(quote)
        yield units(text[:start], unit) + shift[0], units(text[:end], unit) + shift[1], label, quote


def doccano(path, items, copies=1):
    record = {"text": TEXT, "label": [list(item[:3]) for item in items]}
    return write_jsonl(path, [{"id": number, **record} for number in range(copies)])


def label_studio(path, items):
    regions = [{"value": {"start": start, "end": end, "text": quote, "labels": [label]}, "type": "labels"}
               for start, end, label, quote in items]  # fmt: skip
    path.write_text(json.dumps([{"id": 1, "data": {"text": TEXT}, "annotations": [{"result": regions}]}]))
    return path


def own(path, items):
    entities = [{"start": start, "end": end, "label": label, "text": quote} for start, end, label, quote in items]
    return write_jsonl(path, [{"id": "1", "text": TEXT, "entities": entities}])


def brat(path, items):
    path.with_suffix(".txt").write_text(TEXT, encoding="utf-8")
    lines = [f"T{number}\t{label} {start} {end}\t{quote}\n" for number, (start, end, label, quote) in enumerate(items)]
    path.with_suffix(".ann").write_text("".join(lines), encoding="utf-8")
    return path.with_suffix(".ann")


@settings(max_examples=200, deadline=None)
@given(st.text(CHARACTERS, max_size=20), st.integers(-3, 90), st.integers(-3, 90))
def test_units_are_counted_as_encoders_do(text, start, end):
    ruler = Ruler(text)
    for unit in UNITS:
        lengths = [units(text[:place], unit) for place in range(len(text) + 1)]
        assert unit_starts(text, unit).tolist() == lengths
        expected = (lengths.index(start), lengths.index(end)) if {start, end} <= set(lengths) and start < end else None
        assert ruler.place(start, end, unit) == expected


@pytest.mark.parametrize("write", [label_studio, own, brat])
@pytest.mark.parametrize("unit", ["utf-16", "utf-8"])
def test_quotes_reveal_the_unit_and_the_advised_option_helps(write, unit, tmp_path, capsys):
    export = write(tmp_path / "export.jsonl", list(spans(unit)))
    with pytest.raises(DataError) as error:
        import_files(tmp_path, capsys, export)
    place = f"{export}:" if write is not brat else f"{export}:1: T0"
    for part in (place, "(Person): [", "the export quotes 'firemen'", "of 5 entities with a quote hold another text",
                 f"5 are right if offsets count {UNITS[unit]}: import with --offsets {unit}"):  # fmt: skip
        assert part in str(error.value)
    assert not (tmp_path / "train.jsonl").exists()
    (record,), _ = import_files(tmp_path, capsys, export, "--offsets", unit)
    assert marked(record) == list(QUOTES.items()) and record["text"] == TEXT
    with pytest.raises(DataError, match="import with --offsets characters"):
        import_files(tmp_path, capsys, write(tmp_path / "good.jsonl", list(spans("characters"))), "--offsets", unit)


@pytest.mark.parametrize(
    "shift, cause",
    [
        ((1, 1), "5 because all offsets are 1 too high"),
        ((-2, -2), "5 because all offsets are 2 too low"),
        ((0, -1), "5 because ends are 1 too low (the last character's own offset)"),
        ((1, 0), "5 because starts are 1 too high"),
        ((1, 2), "5 because starts are 1 too high, ends 2 too high"),
    ],
)
def test_a_constant_shift_is_named(shift, cause, tmp_path, capsys):
    export = label_studio(tmp_path / "export.json", list(spans("characters", shift)))
    with pytest.raises(DataError) as error:
        import_files(tmp_path, capsys, export)
    assert f"{export}:1 item 1: region 1 (Person): [" in str(error.value)
    assert f"5 of 5 entities with a quote hold another text, {cause}: export again" in str(error.value)


def test_a_few_wrong_quotes_are_left_out_and_more_refused(tmp_path, capsys):
    items = list(spans("characters"))
    items[1] = (*items[1][:3], "fire engines")
    export = label_studio(tmp_path / "export.json", items)
    with pytest.raises(DataError, match="1 of 5 .* and no unit of offsets explains it: .*--max_misquoted 0.2"):
        import_files(tmp_path, capsys, export)
    (record,), printed = import_files(tmp_path, capsys, export, "--max_misquoted", "0.2")
    assert [label for _, label in marked(record)] == ["Person", "Place", "Person", "Thing"]
    assert "1: its quote is another text" in printed
    line = f"{export}:1 item 1: region 2: [19, 29) holds 'firetrucks', the export quotes 'fire engines'"
    assert line in printed and line in (tmp_path / "train.left-out.txt").read_text()
    import_files(tmp_path, capsys, label_studio(export, list(spans("characters"))))
    assert not (tmp_path / "train.left-out.txt").exists()


@pytest.mark.parametrize("found, quote", [("a  b", "a b"), ("a\r\nb", "a\\nb"), ("a\nb ", " ab"), ("", " ")])
def test_quotes_may_differ_in_white_space(found, quote):
    assert is_quote(found, quote) and not is_quote(found + "x", quote)


def test_without_quotes_cut_words_hint_at_code_units(tmp_path, capsys):
    export = doccano(tmp_path / "export.jsonl", list(spans("utf-16")), copies=3)
    records, printed = import_files(tmp_path, capsys, export)
    assert len(records) == 3
    (warning,) = [line for line in printed.splitlines() if line.startswith("warning: ")]
    assert (
        "of the 30 ends of entities behind an emoji or the like lie inside a word, 0 if offsets count UTF-16"
        in warning
    )
    assert f"({export}:1: label[0]: 'emen dr', in UTF-16 code units 'firemen')" in warning
    assert warning.endswith("import with --offsets utf-16")
    records, printed = import_files(tmp_path, capsys, export, "--offsets", "utf-16")
    assert marked(records[0]) == list(QUOTES.items()) and "warning" not in printed
    good = doccano(tmp_path / "good.jsonl", list(spans("characters")), copies=3)
    assert "warning" not in import_files(tmp_path, capsys, good)[1]
    assert "with --offsets characters" in import_files(tmp_path, capsys, good, "--offsets", "utf-16")[1]


def test_texts_in_which_units_do_not_differ_give_no_hint(tmp_path, capsys):
    path = write_jsonl(
        tmp_path / "a.jsonl", [{"text": "firetrucks", "label": [[1, 5, "X"], [2, 7, "X"], [3, 4, "Y"]]}]
    )
    assert "warning" not in import_files(tmp_path, capsys, path)[1]


def test_an_offsets_option_without_effect_is_refused(tmp_path, capsys):
    path = write_jsonl(tmp_path / "a.jsonl", [{"tokens": ["a"], "ner_tags": ["B-X"]}])
    with pytest.raises(DataError, match="--offsets utf-16: the spans of Hugging Face tokens and tags count words"):
        import_files(tmp_path, capsys, path, "--offsets", "utf-16")


def test_webanno_tokens_reveal_the_unit(tmp_path, capsys):
    rows = ["#FORMAT=WebAnno TSV 3.3", "#T_SP=webanno.custom.Span|value", "", "", "#Text=😀 ok"]
    path = tmp_path / "a.tsv"
    path.write_text("\n".join([*rows, "1-1\t0-1\t😀\t_\t", "1-2\t2-4\tok\tFine\t", ""]))
    with pytest.raises(DataError) as error:
        import_files(tmp_path, capsys, path)
    assert str(error.value) == (f"{path}:6: [0, 1) holds '', the token there is '😀'; all tokens are right if offsets "
                                "count characters: import with --offsets characters")  # fmt: skip
    (record,), _ = import_files(tmp_path, capsys, path, "--offsets", "characters")
    assert marked(record) == [("ok", "Fine")]
    path.write_text("\n".join([*rows, "1-1\t0-2\tyes\t_\t", ""]))
    with pytest.raises(DataError, match="the token there is 'yes', and no unit of offsets explains it"):
        import_files(tmp_path, capsys, path)


def test_the_command_ends_with_one_message_and_exit_code_1(tmp_path):
    export = label_studio(tmp_path / "export.json", list(spans("utf-16")))
    done = python(ROOT / "training" / "import_data.py", export, "--output", tmp_path / "train.jsonl")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: {export}:1 item 1: region 1 (Person): ")
    assert list(tmp_path.iterdir()) == [export]


def test_a_surrogate_pair_split_by_a_span_is_outside(tmp_path, capsys):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "😀 ok", "label": [[1, 5, "X"], [3, 5, "Y"]]}])
    (record,), printed = import_files(tmp_path, capsys, path, "--offsets", "utf-16")
    assert marked(record) == [("ok", "Y")]
    assert "label[0]: [1, 5) of 5 UTF-16 code units" in printed and unit_starts("😀", "utf-16").dtype == np.int64
