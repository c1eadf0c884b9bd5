"""
The web demo: paste a long text, see its entities.

    python space/app.py

The model is the one of the environment variable SENER_MODEL (a folder, or user/name@revision on the Hub), else the one
that comes with the repository.
"""

import itertools
import json
import os
import sys
from functools import partial
from pathlib import Path


os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read where the library is imported

try:
    import spaces  # on Hugging Face Spaces, before torch

    on_gpu = spaces.GPU(duration=60)
except ImportError:
    on_gpu = lambda function: function  # noqa: E731

import gradio as gr
from extraction import MAX_CHARACTERS, MAX_TOKENS, DemoError, Extractor, supplied
from reading import SUFFIXES, read_file
from transformers.utils import logging


HERE = Path(__file__).parent
BUNDLED = HERE.parent / "modeling_sener"
MAX_WAITING = 20  # runs in the queue; one runs at a time
MAX_FILE = "20mb"
KEEP_FILES = 600  # seconds between two looks, and that a file is kept at least
PAPERS = {
    "Quasi-Recurrent Neural Networks": "quasi-recurrent-neural-networks.txt",
    "Neural Architectures for NER": "neural-architectures-for-ner.txt",
    "Fast R-CNN": "fast-r-cnn.txt",
}
INTRO = """
# SeNER

Typed entities in texts of any length, nested ones too: one pass over the whole text, nothing cut.
"""
LIMITS = (
    f"Up to {MAX_CHARACTERS:,} characters and {MAX_TOKENS:,} tokens a text, {MAX_FILE[:-2]} MB a file. One text runs "
    f"at a time, {MAX_WAITING} can wait. No text is stored, files are "
    f"deleted within {2 * KEEP_FILES // 60} minutes. Offsets count characters (code points) of the box's text."
)
API = """
```python
from gradio_client import Client

client = Client("URL_OF_THIS_PAGE")
client.predict("We train ResNet-50 on ImageNet for image classification.", 0.5, api_name="/extract")
# [{"start": 9, "end": 18, "text": "ResNet-50", "label": "Method", "score": 0.75}]
```

`text[start:end] == entity["text"]` in your own string; scores are in 0..1. `threshold` is the lowest score to accept;
without it, the model's own thresholds are used. A text over the limit is an error, never a cut text. The downloads
hold what is shown, in the same form; in the CSV file, what a spreadsheet would compute starts with an apostrophe.
"""
log = logging.get_logger("sener.demo")
_numbers = itertools.count()


def message(**content) -> str:
    """
    What the viewer is sent: JSON in ASCII, which carries any string exactly. The number makes each one different, as
    Gradio passes on changes alone.
    """
    return json.dumps({"number": next(_numbers), **content}).replace("<", "\\u003c")


class Demo:
    """The functions behind the page, around one model."""

    def __init__(self, extractor: Extractor):
        self.extractor = extractor

    def run(self, text: str):
        """Messages for the viewer: progress, then the result or an error."""
        try:
            if not text or not text.strip():
                raise DemoError("There is no text yet: paste one, drop a file or choose an example.")
            for step in self.extractor.read(text):
                yield message(progress=step) if isinstance(step, float) else message(result=step)
        except DemoError as error:
            yield message(error=str(error))
        except Exception as error:
            log.exception("a run failed")
            yield message(error=f"The model failed ({type(error).__name__}: {error}). Try a shorter text.")

    def extract(self, text: str, threshold: float | None = None) -> list[dict]:
        """
        Entities of a text: a list of {"start", "end", "text", "label", "score"}, offsets in characters, in text order.
        threshold: the lowest score to accept, 0 to 1; without it the model's own.
        """
        try:
            return self.extractor.extract(text, threshold)
        except DemoError as error:
            raise gr.Error(str(error), print_exception=False) from error


def open_file(path: str | None):
    """The box's text, the choice among a file's texts and their list, and a message where it cannot be read."""
    if path is None:
        return gr.skip(), gr.update(visible=False), [], gr.skip()
    try:
        texts = read_file(path)
    except DemoError as error:
        return gr.skip(), gr.update(visible=False), [], message(error=str(error))
    choices = [(name, number) for number, (name, _) in enumerate(texts)]
    choice = gr.update(choices=choices, value=0, visible=len(texts) > 1)
    return texts[0][1], choice, texts if len(texts) > 1 else [], gr.skip()


def open_nested():
    """The example of nested entities: its text, and the message that shows them."""
    example = json.loads((HERE / "examples" / "nested.json").read_text(encoding="utf-8"))
    return example["text"], message(result=supplied(**example))


def read_page(name: str) -> str:
    return (HERE / "page" / name).read_text(encoding="utf-8")


def viewer() -> gr.HTML:
    """The result, drawn in the browser from the messages that are its value."""
    script = "\n".join(map(read_page, ("text.js", "export.js", "viewer.js")))
    return gr.HTML(
        "",
        html_template=read_page("viewer.html"),
        js_on_load=(
            "window.sener = new Viewer(element, () => trigger('cancel'));\n"
            "watch('value', () => window.sener.receive(props.value));"
        ),
        head=f'<style id="sener-marks">{read_page("marks.css")}</style><script>{script}</script>',
        apply_default_css=False,
        elem_id="viewer",
    )


def build(extractor: Extractor) -> gr.Blocks:
    """The page."""
    demo = Demo(extractor)
    run, extract = on_gpu(demo.run), on_gpu(demo.extract)
    model_queue = {"concurrency_id": "model", "concurrency_limit": 1}
    private = {"api_visibility": "private", "show_progress": "hidden"}
    busy = "(...inputs) => { window.sener.busy(); return inputs; }"
    with gr.Blocks(title="SeNER", analytics_enabled=False, delete_cache=(KEEP_FILES, KEEP_FILES)) as page:
        gr.Markdown(INTRO, elem_classes="intro")
        with gr.Row(equal_height=False):
            with gr.Column(scale=3):
                text = gr.Textbox(
                    label="Text", lines=9, max_lines=9, placeholder="Paste a text of any length", elem_id="text"
                )
            with gr.Column(scale=1, min_width=260):
                file = gr.File(
                    label="File: txt, md, html, pdf or jsonl", file_types=list(SUFFIXES), type="filepath", height=150
                )
                choice = gr.Dropdown(label="Text of the file", visible=False, interactive=True)
                texts = gr.State([], time_to_live=3600)
                start = gr.Button("Find entities", variant="primary", elem_id="start")
        with gr.Row(elem_classes="examples"):
            gr.Markdown("Or try", elem_classes="hint")
            papers = [gr.Button(title, size="sm") for title in PAPERS]
            nested = gr.Button("Nested entities (supplied)", size="sm")
        result = viewer()
        gr.Markdown(LIMITS, elem_classes="hint")
        with gr.Accordion("Use it from a program", open=False):
            gr.Markdown(API)

        running = [gr.on([start.click, text.submit], run, text, result, js=busy, **private, **model_queue)]
        for button, file_name in zip(papers, PAPERS.values(), strict=True):
            load = partial((HERE / "examples" / file_name).read_text, encoding="utf-8")
            loaded = button.click(load, None, text, js=busy, **private)
            running.append(loaded.then(run, text, result, **private, **model_queue))
        nested.click(open_nested, None, [text, result], js=busy, **private)
        file.change(open_file, file, [text, choice, texts, result], **private)
        choice.input(lambda number, texts: texts[number][1], [choice, texts], text, **private)
        for each in running:
            each.failure(None, js="() => window.sener.ended()")
        result.cancel(None, cancels=running)
        gr.api(extract, api_name="extract", **model_queue)
    return page.queue(max_size=MAX_WAITING)


THEME = gr.themes.Base(
    primary_hue="blue",
    neutral_hue="slate",
    font=[gr.themes.Font(name) for name in ("system-ui", "Segoe UI", "Roboto", "sans-serif")],
    font_mono=[gr.themes.Font(name) for name in ("ui-monospace", "Consolas", "monospace")],
    radius_size=gr.themes.sizes.radius_lg,
).set(  # the defaults are too pale to read
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    input_placeholder_color="*neutral_600",
    input_placeholder_color_dark="*neutral_300",
    block_label_text_color="*neutral_600",
    block_label_text_color_dark="*neutral_300",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_hover_dark="*primary_800",
)


def main() -> None:
    name = os.environ.get("SENER_MODEL") or str(BUNDLED)
    try:
        extractor = Extractor(name)
    except DemoError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    build(extractor).launch(
        theme=THEME,
        css=read_page("viewer.css"),
        footer_links=["api", "settings"],
        max_file_size=MAX_FILE,
        run_history=False,
        ssr_mode=False,
    )


if __name__ == "__main__":
    main()
