"""Recognise the annotation tool that wrote a record or file, by its content."""

import codecs
import gzip
import re
import zlib
from pathlib import Path


HEAD = 65536  # bytes of a file that are inspected
# The value of --format -> the name in messages.
FORMATS = {
    "doccano": "a doccano export",
    "label-studio": "a Label Studio export",
    "prodigy": "a Prodigy export",
    "brat": "brat's standoff annotations",
    "conll": "CoNLL columns",
    "spacy": "spaCy's training data",
    "gliner": "GLiNER's training data",
    "huggingface": "Hugging Face tokens and tags",
    "webanno": "a WebAnno TSV 3 file (INCEpTION)",
    "sener": "this project's own JSON Lines",
}
LINE_END = re.compile(r"\r\n?|\n")
TAG = re.compile(r"O|[BILEUS]-\S.*")
TAG_FIELDS = ("ner_tags", "tags", "labels", "ner")
_SEVERAL_LINES = re.compile(rb'\s*[\[{]\s*\n\s*["\[{]')
_BRAT_LINE = re.compile(r"T\d+\t\S+ \d+ \d+(;\d+ \d+)*\t|[REAMN]\d+\t\S+ |#\d*\t\S+ |\*\t\S+ ")


def encoding_of(head: bytes) -> str:
    """The encoding of a text file that begins with `head`: UTF-8, or UTF-16 with its mark. No mark is part of it."""
    return "utf-16" if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"


def recognise(record) -> str | None:
    """The format of a parsed JSON record; `None` if it fits no format, or could be of several."""
    if isinstance(record, list):
        is_pair = len(record) == 2 and isinstance(record[0], str) and isinstance(record[1], dict)
        return "spacy" if is_pair and "entities" in record[1] else None
    if not isinstance(record, dict):
        return None
    if isinstance(record.get("tokenized_text"), list):
        return "gliner"
    if "classes" in record and any(recognise(item) == "spacy" for item in _items(record, "annotations")):
        return "spacy"
    if _is_label_studio(record):
        return "label-studio"
    tokens = record.get("tokens")
    if isinstance(tokens, list) and all(isinstance(token, str) for token in tokens) and tag_field(record):
        return "huggingface"
    if isinstance(record.get("text"), str) and ("_input_hash" in record or isinstance(record.get("spans"), list)):
        return "prodigy"
    if _is_doccano(record):
        return "doccano"
    return "sener" if _is_own(record) else None


def tag_field(record: dict) -> str | None:
    """The name of the field that holds a tag for each token."""
    return next((name for name in TAG_FIELDS if isinstance(record.get(name), list)), None)


def is_triple(item) -> bool:
    """Whether this is (start, end, label), as doccano and spaCy write a span."""
    return isinstance(item, list) and len(item) == 3 and isinstance(item[2], str)


def recognise_head(head: bytes) -> str | None:
    """The format of a file, by its first bytes; "json" or "parquet" if only its records can tell."""
    if head.startswith(b"PAR1"):
        return "parquet"
    if head[:2] in (b"x\x01", b"x\x9c", b"x\xda"):  # zlib's header: a DocBin
        return "spacy"
    text = head.decode(encoding_of(head), "replace").lstrip()
    if text.startswith(("{", "[")):
        return "json"
    if text.startswith("#FORMAT=WebAnno TSV 3"):
        return "webanno"
    lines = LINE_END.split(text, maxsplit=50)[:50]
    if len(head) == HEAD and len(lines) < 50:
        lines.pop()  # the last line may be cut off
    lines = [line for line in lines if line.strip()]
    if lines and all(_BRAT_LINE.match(line) for line in lines):
        return "brat"
    rows = [columns_of(line) for line in lines if not is_comment(line)]
    tagged = sum(len(row) > 1 and TAG.fullmatch(row[-1]) is not None for row in rows)
    return "conll" if tagged > len(rows) / 2 else None  # `read_conll` names the faulty lines


def is_comment(line: str) -> bool:
    """Whether a line of CoNLL columns is a comment. A # that has a tag is a word."""
    columns = columns_of(line)
    return line.startswith("#") and not (len(columns) > 1 and TAG.fullmatch(columns[-1]))


def columns_of(line: str) -> list[str]:
    """Split a line at tabs if it has any, else at blanks."""
    return line.split("\t") if "\t" in line else [column for column in line.split(" ") if column]


def recognise_file(path: str) -> str | None:
    """The format of a file or folder, as for `recognise_head`; raises `OSError` if it cannot be read."""
    if Path(path).is_dir():
        return "brat" if next(Path(path).rglob("*.ann"), None) else None
    if path.endswith((".ann", ".txt")) and Path(path).with_suffix(".ann").is_file():
        return "brat"
    return recognise_head(read_head(path))


def read_head(path: str) -> bytes:
    with gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb") as file:
        return file.read(HEAD)


def advice(source: str, record=None) -> str | None:
    """
    Suggest the import command for another tool's file, given to a command that reads this project's own format.

    Args:
        record: the JSON value that could not be used, if there is one.

    Returns:
        `None` if the tool is not recognised.
    """
    kind = recognise(record) or (recognise(record[0]) if isinstance(record, list) and record else None)
    what = FORMATS.get(kind)
    if what is None and (record is None or Path(source).is_dir()):
        what = _file_kind(source)
    if what is None or kind == "sener":
        return None
    file, save = (source, "") if Path(source).exists() else ("data.parquet", "save it (`to_parquet`) and ")
    return f"looks like {what}: {save}import it with: python training/import_data.py {file} --output train.jsonl"


def _file_kind(path: str) -> str | None:
    """The name, for a message, of the format of a file that is not JSON Lines."""
    try:
        kind = recognise_file(path)
        if kind == "json":
            return "JSON over several lines" if _SEVERAL_LINES.match(read_head(path)) else None
    except (OSError, EOFError, zlib.error):
        return None
    return {"parquet": "a Parquet file", **FORMATS}.get(kind)


def _items(record: dict, name: str) -> list:
    return record[name] if isinstance(record.get(name), list) else []


def _is_label_studio(record: dict) -> bool:
    if isinstance(record.get("data"), dict) and {"annotations", "completions", "predictions"} & set(record):
        return True
    if "annotation_id" in record and {"annotator", "lead_time"} & set(record):
        return True  # JSON-MIN
    regions = [item for value in record.values() if isinstance(value, list) for item in value[:1]]
    return any(isinstance(item, dict) and {"start", "end"} <= set(item) and labels_of(item) for item in regions)


def labels_of(region: dict) -> list:
    """The labels of a Label Studio region, from its fields `labels`, `hypertextlabels`, ..."""
    lists = [value for name, value in region.items() if name.endswith("labels") and isinstance(value, list)]
    return [label for labels in lists for label in labels]


def _is_doccano(record: dict) -> bool:
    if not isinstance(record.get("text", record.get("data")), str):
        return False
    for name in ("label", "labels", "entities", "annotations"):
        items = _items(record, name)
        if any(isinstance(item, dict) and "start_offset" in item for item in items):
            return True
        if items and all(map(is_triple, items)):
            return True
    has_doccano_fields = "Comments" in record or ("relations" in record and record.get("entities") == [])
    return has_doccano_fields or record.get("label", record.get("labels")) == []


def _is_own(record: dict) -> bool:
    if isinstance(record.get("text"), list):
        return isinstance(record.get("entity"), list)
    entities = _items(record, "entities")  # an empty list fits several formats
    return isinstance(record.get("text"), str) and any(
        isinstance(item, dict) and {"start", "end", "label"} <= set(item) for item in entities
    )
