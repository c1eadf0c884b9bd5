"""
Read the texts of files that visitors drop on the page: .txt, .md, .html, .pdf and .jsonl.

A process of its own reads a file: a file made to exhaust its reader has to be stopped from outside.
"""

import codecs
import json
import re
import subprocess
import sys
from pathlib import Path

import lxml.html
from inscriptis.css_profiles import CSS_PROFILES
from inscriptis.html_engine import Inscriptis
from inscriptis.model.config import ParserConfig
from limits import MAX_CHARACTERS, MAX_RECORDS, READING_MEMORY, READING_SECONDS, DemoError, too_long
from pypdf import PdfReader
from pypdf.errors import PyPdfError


SUFFIXES = (".txt", ".md", ".html", ".htm", ".pdf", ".jsonl")
LINE_END = re.compile(r"\r\n?|\n")
MAX_NAME = 100  # characters of a text's name
INVISIBLE = "//template | //noscript | //*[@hidden]"  # beside what Inscriptis leaves out itself: scripts, styles, ...


def read_apart(path: str | Path) -> list[tuple[str, str]]:
    """
    Call `read_file` in a process of its own, with `READING_SECONDS` and `READING_MEMORY`.

    Raises:
        DemoError: from `read_file`, or the file needs more time or memory.
    """
    name = Path(path).name
    command = [sys.executable, __file__, str(path), str(READING_MEMORY)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=READING_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise DemoError(
            f"{name}: reading it took longer than {READING_SECONDS} seconds and was stopped. Paste the text itself."
        ) from error
    if done.returncode != 0:
        raise DemoError(f"{name}: damaged, or more than this page's memory holds. Paste the text itself.")
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise DemoError(answer["error"])
    return [tuple(pair) for pair in answer["texts"]]


def main() -> None:
    """`reading.py PATH BYTES`: print the texts of a file, or an error message, as JSON."""
    path, memory = sys.argv[1], int(sys.argv[2])
    limit_memory(memory)
    try:
        answer = {"texts": read_file(path)}
    except DemoError as error:
        answer = {"error": str(error)}
    except FileNotFoundError:
        answer = {"error": f"{Path(path).name}: deleted by now. Drop it again."}
    print(json.dumps(answer))


def limit_memory(size: int) -> None:
    """Bound the memory of this process, if the system can: Windows has no such limit, macOS refuses to set it."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (size, size))
    except (ImportError, ValueError, OSError):
        pass  # or the limit is narrower already


def read_file(path: str | Path) -> list[tuple[str, str]]:
    """
    The texts of a file, as pairs of name and text: one per line of a .jsonl file, one for any other file.

    Raises:
        DemoError: files of this kind are not read, or this one is damaged, empty or too long.
    """
    path = Path(path)
    readers = {".pdf": read_pdf, ".html": read_html, ".htm": read_html, ".txt": read_plain, ".md": read_plain}
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DemoError(f"{path.name}: files of this kind are not read. Choose one of {', '.join(SUFFIXES)}.")
    if suffix == ".jsonl":
        return read_jsonl(path)  # an empty or long text among many is refused only when it is chosen and run
    text = readers[suffix](path)
    if not text.strip():
        raise DemoError(f"{path.name}: there is no text in it.")
    if len(text) > MAX_CHARACTERS:
        raise too_long(len(text), MAX_CHARACTERS, "characters")
    return [(path.name, text)]


def read_plain(path: Path) -> str:
    """
    Read UTF-8, or UTF-16 with a byte order mark. The mark is dropped. Line ends stay as they are, so that offsets are
    the file's own (the same rule as training/corpus/data.py).
    """
    content = path.read_bytes()
    is_wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if is_wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DemoError(f"{path.name}: not UTF-8 text (byte {error.start}). Save it as UTF-8.") from error


def read_html(path: Path) -> str:
    """The text that a browser would show."""
    content = path.read_bytes()
    try:
        content.decode("utf-8")
        encoding = "utf-8"
    except UnicodeDecodeError:
        encoding = None  # lxml takes the one that the file names, else Latin-1
    parser = lxml.html.HTMLParser(encoding=encoding, huge_tree=True)  # huge_tree: deeply nested text is not dropped
    try:
        tree = lxml.html.document_fromstring(content, parser=parser)
        for element in tree.xpath(INVISIBLE):
            element.drop_tree()
        return Inscriptis(tree, ParserConfig(css=CSS_PROFILES["strict"])).get_text()
    except lxml.etree.ParserError as error:
        raise DemoError(f"{path.name}: there is no text in it.") from error
    except RecursionError as error:
        raise DemoError(f"{path.name}: its elements are nested too deeply. Paste the text itself.") from error


def read_pdf(path: Path) -> str:
    """The text of all pages, an empty line between them."""
    pages, size = [], 0
    try:
        reader = PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            raise DemoError(f"{path.name}: protected by a password. Save it without one.")
        for page in reader.pages:
            pages.append(page.extract_text())
            size += len(pages[-1])
            if size > MAX_CHARACTERS:
                raise DemoError(
                    f"{path.name}: more than {MAX_CHARACTERS:,} characters after {len(pages)} of {len(reader.pages)} "
                    "pages, more than this page takes. Nothing was cut: choose a smaller file."
                )
    except DemoError:
        raise
    except (PyPdfError, ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError, OSError) as error:
        # pypdf raises all of these on broken files
        raise DemoError(f"{path.name}: not a PDF that can be read ({type(error).__name__}: {error}).") from error
    text = "\n\n".join(pages)
    if not text.strip():
        raise DemoError(f"{path.name}: no text in {len(pages)} pages: scanned images, perhaps. Run OCR on it first.")
    return text


def read_jsonl(path: Path) -> list[tuple[str, str]]:
    """
    Read one text per line: an object whose `text` is a string or a list of words, which are joined by spaces. Its name
    is `id` or `doc_id`, else the line's number.
    """
    texts = []
    for number, line in enumerate(LINE_END.split(read_plain(path)), start=1):
        if not line.strip():
            continue
        where = f"{path.name}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DemoError(f"{where}: not JSON ({error}).") from error
        text = record.get("text") if isinstance(record, dict) else None
        if isinstance(text, list) and all(isinstance(word, str) for word in text):
            text = " ".join(text)
        if not isinstance(text, str):
            raise DemoError(f"{where}: expected an object with a field text, a string or a list of words.")
        name = record.get("id", record.get("doc_id"))
        texts.append((f"{number}: {name}"[:MAX_NAME] if isinstance(name, str | int) else f"line {number}", text))
        if len(texts) > MAX_RECORDS:
            raise DemoError(f"{path.name}: more than {MAX_RECORDS:,} lines: split the file.")
    if not texts:
        raise DemoError(f"{path.name}: there is no text in it.")
    return texts


if __name__ == "__main__":
    main()
