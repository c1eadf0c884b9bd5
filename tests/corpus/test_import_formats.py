"""import_data.py reads the export of each tool. Files in data/exports were made after the tools' documentation."""

import json
import shutil

import datasets
import pytest
import spacy
from spacy.tokens import DocBin
from support.importing import EXPORTS, FLAT, NESTED, REPLY, TEXT, import_files, marked
from support.toy import ROOT, python

from training.corpus.data import DataError, read_documents
from training.corpus.recognise import FORMATS


WORDS = TEXT.split()
FILES = {
    "doccano.jsonl": ("doccano", TEXT, NESTED, ["not read: 1 comments"]),
    "doccano-relations.jsonl": ("doccano", TEXT, NESTED, ["not read: 1 relations"]),
    "label-studio.json": (
        "label-studio",
        TEXT,
        NESTED,
        [
            "1: not annotated",
            "label-studio.json:225 item 3: document",
            "1: cancelled by the annotator",
            "1 annotations of tasks that have a later one, or a ground truth, 2 cancelled annotations, "
            "1 results of type choices, 1 results of type relation",
        ],
    ),
    "label-studio-min.json": ("label-studio", TEXT, NESTED, ["1: the same id and text were there already"]),
    "prodigy.jsonl": (
        "prodigy",
        TEXT,
        NESTED,
        ["the same text was accepted again further down", "1: the answer is reject", "1: the answer is ignore"],
    ),
    "brat": ("brat", TEXT, NESTED, ["1: discontinuous", "letter.ann:8: T6 (Person) 0 3;25 32: 'Ada Babbage'",
                                    "not read: 1 notes, 1 relations"]),
    "conll2003.txt": ("conll", WORDS, FLAT, ["note: 4 entities begin with I-, as in IOB1"]),
    "bilou.tsv": ("conll", WORDS, FLAT, ["note: 1 files mark no documents: what stands between two empty lines"]),
    "spacy.json": ("spacy", TEXT, NESTED, []),
    "gliner.json": ("gliner", WORDS, NESTED, []),
    "huggingface.jsonl": ("huggingface", WORDS, FLAT, []),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_each_format_is_recognised_and_read(name, tmp_path, capsys):
    kind, text, entities, lines = FILES[name]
    records, printed = import_files(tmp_path, capsys, EXPORTS / name)
    assert sorted(map(marked, records), key=len, reverse=True) == [entities, []]
    letter, reply = sorted(records, key=lambda record: -len(record["text"]))
    assert letter["text"] == text and reply["text"] == (REPLY if isinstance(text, str) else REPLY.split())
    assert f"{name}: {FORMATS[kind]}: 2 documents, {len(entities)} entities" in printed
    for line in [*lines, "note: 1 documents have no entity", "wrote "]:
        assert line in printed
    assert ("Babbage" in printed.split("LABEL")[1]) == (entities == NESTED)


@pytest.mark.parametrize("name", [name for name in FILES if name != "brat"])
def test_the_format_can_be_given_and_a_wrong_one_is_an_error(name, tmp_path, capsys):
    kind, _, entities, _ = FILES[name]
    records, _ = import_files(tmp_path, capsys, EXPORTS / name, "--format", kind)
    assert len(records) == 2
    wrong = "gliner" if kind != "gliner" else "prodigy"
    if not name.endswith(("json", "jsonl")):
        wrong = "webanno"
    with pytest.raises(DataError, match=name):
        import_files(tmp_path, capsys, EXPORTS / name, "--format", wrong)


def test_webanno_tsv_with_stacked_spans_escapes_and_code_units_is_read(tmp_path, capsys):
    (record,), printed = import_files(tmp_path, capsys, EXPORTS / "inception.tsv")
    text = record["text"]
    assert text == "Ada Lovelace met Charles Babbage in London . She 😊 [admired] \\\nthe Analytical Engine_s ."
    assert marked(record) == [*NESTED[:4], ("She", "Doubtful"), ("Analytical Engine", "Machine_1")]
    for line in (
        "inception.tsv:28: NamedEntity: label: expected a name, found None",
        "note: 1 files have a layer that is not read: de.tudarmstadt.ukp.dkpro.core.api.lexmorph.type.pos.POS",
        "note: 1 files have a layer that is not read: webanno.custom.Meets",
        "note: 1 files label NamedEntity by its feature value, not by identifier",
    ):
        assert line in printed


def test_either_file_of_a_pair_of_brat_names_both(tmp_path, capsys):
    for name in ("letter.ann", "letter.txt"):
        (record,), _ = import_files(tmp_path, capsys, EXPORTS / "brat" / name)
        assert record["id"] == "letter" and marked(record) == NESTED
    records, printed = import_files(tmp_path, capsys, *sorted((EXPORTS / "brat").iterdir()))
    assert [record["id"] for record in records] == ["letter", "reply"] and "already" not in printed
    shutil.copytree(EXPORTS / "brat", tmp_path / "lone")
    (tmp_path / "lone" / "reply.ann").unlink()
    (record,), printed = import_files(tmp_path, capsys, tmp_path / "lone")
    assert "reply.txt: document" in printed and "1: no .ann file beside it" in printed


def test_entities_and_span_groups_of_a_docbin_are_read(tmp_path, capsys):
    nlp, docs = spacy.blank("en"), DocBin()
    for text, gold in ((TEXT, NESTED), (REPLY, [])):
        doc = nlp(text)
        spans = [doc.char_span(text.index(quote), text.index(quote) + len(quote), label) for quote, label in gold]
        doc.ents = [span for span in spans if span.label_ != "Surname"]
        doc.spans["sc"] = [span for span in spans if span.label_ in ("Surname", "Place")]
        docs.add(doc)
    docs.to_disk(tmp_path / "train.spacy")
    records, printed = import_files(tmp_path, capsys, tmp_path / "train.spacy")
    assert [marked(record) for record in records] == [NESTED, []]
    assert "note: 4 entities are read from ents" in printed and "note: 2 entities are read from spans[sc]" in printed
    assert "note: 1 entities were there twice" in printed


@pytest.mark.parametrize("lines", [True, False])
def test_pairs_for_spacy_are_read_from_lines_or_beside_their_classes(lines, tmp_path, capsys):
    pairs = json.loads((EXPORTS / "spacy.json").read_text())
    path = tmp_path / "pairs.json"
    path.write_text("\n".join(map(json.dumps, pairs)) if lines else json.dumps(
        {"classes": ["Person"], "annotations": [None, *pairs]}, indent=2))  # fmt: skip
    records, printed = import_files(tmp_path, capsys, path)
    assert [marked(record) for record in records] == [NESTED, []]
    assert lines or "annotations[0]: document" in printed


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_numbered_tags_take_their_names_from_the_features_or_the_command(ending, tmp_path, capsys):
    records = [json.loads(line) for line in (EXPORTS / "huggingface.jsonl").read_text().splitlines()]
    names = ["O", "B-Person", "I-Person", "B-Place", "B-Machine", "I-Machine"]
    rows = [{**record, "ner_tags": [names.index(tag) for tag in record["ner_tags"]]} for record in records]
    path, features = tmp_path / f"data.{ending}", datasets.Features(
        {"id": datasets.Value("string"), "tokens": datasets.List(datasets.Value("string")),
         "ner_tags": datasets.List(datasets.ClassLabel(names=names))})  # fmt: skip
    data = datasets.Dataset.from_list(rows, features=features)
    data.to_parquet(path) if ending == "parquet" else data.to_json(path)
    options = [] if ending == "parquet" else ["--tag_names", ",".join(names)]
    records, _ = import_files(tmp_path, capsys, path, *options)
    assert [marked(record) for record in records] == [FLAT, []]
    if ending == "jsonl":
        with pytest.raises(DataError, match=r"data.jsonl:1: ner_tags\[0\]: the tag is a number.*--tag_names O,B-PER"):
            import_files(tmp_path, capsys, path)
        with pytest.raises(DataError, match=r"data.jsonl:1: ner_tags\[0\]: tag 1 has no name; there are 1: O"):
            import_files(tmp_path, capsys, path, "--tag_names", "O")


def test_label_studio_conll_has_one_head_for_all_its_texts(tmp_path, capsys):
    rows = [f"{word} -X- _ {'B-Place' if word == 'London' else 'O'}" for word in WORDS]
    path = tmp_path / "result.conll"
    path.write_text("-DOCSTART- -X- O\n" + "\n".join(rows) + "\n\nNothing -X- _ O\n\n")
    records, printed = import_files(tmp_path, capsys, path)
    assert [record["text"] for record in records] == [WORDS, ["Nothing"]]
    assert "files mark no documents" in printed
    path.write_text("-DOCSTART- -X- O\n\n" + "\n".join(rows) + "\n\nNothing -X- _ O\n\n")
    records, printed = import_files(tmp_path, capsys, path)
    assert [record["text"] for record in records] == [[*WORDS, "Nothing"]] and "mark no documents" not in printed


def test_conll_documents_need_no_empty_line_between_and_may_begin_with_a_number(tmp_path, capsys):
    path = tmp_path / "a.conll"
    path.write_text("-DOCSTART- -X- O\n1 CD O\nAda NN B-Person\n-DOCSTART- -X- O\n1 CD O\n\n2 CD O\n")
    records, _ = import_files(tmp_path, capsys, path)
    assert [record["text"] for record in records] == [["1", "Ada"], ["1", "2"]]


@pytest.mark.parametrize("mark", ["# newdoc id = a", "# doc_id = a"])
def test_conll_documents_may_have_comments_and_numbered_words(mark, tmp_path, capsys):
    path = tmp_path / "data.conllu"
    path.write_text(
        f"{mark}\n# text = Ada .\n1\tAda\tB-Person\n2\t#\tO\n\n1\tLovelace\tS-Person\n\n# newdoc\n1\tI\tO\n"
    )
    records, _ = import_files(tmp_path, capsys, path)
    assert [(record["doc_id"], record["text"]) for record in records] == [
        ("a", ["Ada", "#", "Lovelace"]), (f"{path}:9", ["I"])
    ]  # fmt: skip
    assert marked(records[0]) == [("Ada", "Person"), ("Lovelace", "Person")]


def test_a_tag_after_the_last_one_of_an_entity_begins_another(tmp_path, capsys):
    path = tmp_path / "a.conll"
    path.write_text("".join(f"{word} {tag}-X\n" for word, tag in zip("abcdefgh", "BLILUIES", strict=True)))
    (record,), printed = import_files(tmp_path, capsys, path)
    assert marked(record) == [("a b", "X"), ("c d", "X"), ("e", "X"), ("f g", "X"), ("h", "X")]
    assert "note: 2 entities begin with I-" in printed


def test_shortened_label_studio_records_are_read(tmp_path, capsys):
    records = json.loads((EXPORTS / "label-studio-min.json").read_text())
    path = tmp_path / "a.json"
    short = [{name: record[name] for name in ("letter", "label") if name in record} for record in records]
    path.write_text(json.dumps(short))
    kept, printed = import_files(tmp_path, capsys, path)
    assert marked(kept[0]) == NESTED and "a.json: a Label Studio export: 3 documents" in printed


def test_answers_to_yes_or_no_questions_of_prodigy_are_joined(tmp_path, capsys):
    def question(start, end, answer, key=1):
        return {"text": TEXT, "spans": [{"start": start, "end": end, "label": "Person"}], "_view_id": "ner",
                "answer": answer, "_input_hash": key}  # fmt: skip

    path = tmp_path / "teach.jsonl"
    questions = [question(0, 12, "accept"), question(13, 16, "reject"), question(17, 32, "accept")]
    path.write_text("\n".join(map(json.dumps, [*questions, question(0, 3, "reject", key=2)])))
    (record,), printed = import_files(tmp_path, capsys, path)
    assert marked(record) == [("Ada Lovelace", "Person"), ("Charles Babbage", "Person")]
    assert "note: 1 texts come from yes-or-no questions" in printed and "2 questions that were not accepted" in printed
    assert "teach.jsonl:4: document" in printed


def test_an_accepted_question_of_prodigy_before_a_manual_record_is_listed_as_left_out(tmp_path, capsys):
    question = {"text": TEXT, "spans": [{"start": 0, "end": 12, "label": "Person"}], "_view_id": "ner",
                "answer": "accept", "_input_hash": 1}  # fmt: skip
    manual = question | {"_view_id": "ner_manual", "spans": [{"start": 17, "end": 32, "label": "Person"}]}
    path = tmp_path / "mixed.jsonl"
    path.write_text(json.dumps(question) + "\n" + json.dumps(manual))
    (record,), printed = import_files(tmp_path, capsys, path)
    assert marked(record) == [("Charles Babbage", "Person")]
    assert "mixed.jsonl:1: document, see" in printed and "accepted again further down" in printed


def test_label_studio_prefers_a_ground_truth_and_reads_spans_of_any_control(tmp_path, capsys):
    task = json.loads((EXPORTS / "label-studio.json").read_text())[0]
    task["annotations"][0]["ground_truth"] = True
    task["annotations"][0]["result"][1].update(type="hypertextlabels", from_name="other", value={
        "start": "/text()[1]", "end": "/text()[1]", "startOffset": 36, "endOffset": 42, "text": "London",
        "globalOffsets": {"start": 36, "end": 42}, "hypertextlabels": ["Place", "City"]})  # fmt: skip
    path = tmp_path / "one.json"
    path.write_text(json.dumps(task))
    (record,), _ = import_files(tmp_path, capsys, path)
    assert marked(record) == [("Ada Lovelace", "Person"), ("London", "City"), ("London", "Place")]


@pytest.mark.parametrize("name", [*FILES, "inception.tsv", "train.spacy", "data.parquet"])
def test_readers_of_training_data_name_the_tool_and_the_command(name, tmp_path, capsys):
    if name == "train.spacy":
        docs = DocBin(docs=[spacy.blank("en")(TEXT)])
        docs.to_disk(tmp_path / name)
    elif name == "data.parquet":
        datasets.Dataset.from_list([{"tokens": ["a"], "ner_tags": ["O"]}]).to_parquet(tmp_path / name)
    path = tmp_path / name if (tmp_path / name).exists() else EXPORTS / name
    with pytest.raises(DataError) as error:
        read_documents(path)
    kind = {"inception.tsv": "webanno", "train.spacy": "spacy"}.get(name) or FILES.get(name, ("",))[0]
    what = FORMATS.get(kind, "a Parquet file")
    if name == "label-studio.json":
        what = "JSON over several lines"
    assert str(error.value).endswith(f"looks like {what}: import it with: python training/import_data.py {path} "
                                     "--output train.jsonl")  # fmt: skip
    if name == "doccano.jsonl":
        assert str(error.value).startswith(f"{path}:1: looks like")


def test_other_commands_read_the_imported_file(tmp_path):
    done = python(ROOT / "training" / "import_data.py", EXPORTS / "doccano.jsonl", "--output", tmp_path / "a.jsonl")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].endswith("doccano.jsonl: a doccano export: 2 documents, 5 entities")
    assert '"training.importing"' in (ROOT / "pyproject.toml").read_text()  # or else an installed package lacks it
    (letter, reply) = read_documents(tmp_path / "a.jsonl", labels=["Machine", "Person", "Place", "Surname"])
    assert (letter.id, len(letter.entities), reply.entities) == ("7", 5, ())
