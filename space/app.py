"""
The web demo: paste a long text, see its entities.

    python space/app.py

The models are those that come with the repository, or the one of the environment variable SENER_MODEL (a folder, or
user/name@revision on the Hub).
"""

import itertools
import json
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

from ending import end_on_signals


if __name__ == "__main__":
    end_on_signals()
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when the library is imported

try:
    import spaces  # exists on Hugging Face Spaces, which wants it imported before torch

    on_gpu = spaces.GPU(duration=60)
except ImportError:
    on_gpu = lambda function: function  # noqa: E731

import gradio as gr
from guard import Guard, keep_clean, refuse_downloads
from limits import (
    KEEP_FILES,
    MAX_CHARACTERS,
    MAX_FILE,
    MAX_SECONDS,
    MAX_SESSIONS,
    MAX_TOKENS,
    MAX_WAITING,
    DemoError,
)
from models import Models, on_offer
from reading import SUFFIXES, read_apart
from starlette.middleware import Middleware
from transformers.utils import logging


HERE = Path(__file__).parent
INTRO = """
# SeNER

Typed entities in texts of any length, nested ones too: one pass over the whole text, nothing cut.
"""
LIMITS = (
    f"Up to {MAX_CHARACTERS:,} characters, {MAX_TOKENS:,} tokens and {{seconds:g}} seconds of computing a text, "
    f"{MAX_FILE} MB a file. One text runs at a time, {MAX_WAITING} can wait. No text is stored, files are deleted "
    f"within {2 * KEEP_FILES // 60} minutes. Offsets count characters (code points) of the box's text."
)
API = """
```python
from gradio_client import Client

client = Client("URL_OF_THIS_PAGE")
client.predict("We train ResNet-50 on ImageNet for image classification.", 0.5, api_name="/extract")
# [{"start": 9, "end": 18, "text": "ResNet-50", "label": "Method", "score": 0.95},
#  {"start": 22, "end": 30, "text": "ImageNet", "label": "Material", "score": 0.85},
#  {"start": 35, "end": 55, "text": "image classification", "label": "Task", "score": 0.88}]
```

`text[start:end] == entity["text"]` in your own string; scores are in 0..1. `threshold` is the lowest score to accept;
without it, the model's own thresholds are used. `model` is one of {models}; without it, the first.

A text over the limit is an error, never a cut text. The downloads hold what is shown, in the same form; in the CSV
file, what a spreadsheet would compute starts with an apostrophe.
"""
log = logging.get_logger("sener.demo")
_numbers = itertools.count()


def message(**content) -> str:
    """
    Encode a message for the viewer: JSON in ASCII, which keeps any string exactly. The number makes each message
    different, as Gradio only passes on a value that changed.
    """
    return json.dumps({"number": next(_numbers), **content}).replace("<", "\\u003c")


class Demo:
    """The functions that the page and programs call."""

    def __init__(self, models: Models):
        self.models = models

    def run(self, text: str, model: str | None = None):
        """Yield messages for the viewer: progress, then the result or an error."""
        try:
            if not text or not text.strip():
                raise DemoError("There is no text yet: paste one, drop a file or choose an example.")
            for step in self.models.get(model).read(text):
                if isinstance(step, float):
                    yield message(progress=step)
                else:
                    yield message(result={**step, **self.models.about(model)})
        except DemoError as error:
            yield message(error=str(error))
        except Exception as error:
            log.exception("a run failed")
            yield message(error=f"The model failed ({type(error).__name__}: {error}). Try a shorter text.")

    def extract(self, text: str, threshold: float | None = None, model: str | None = None) -> list[dict]:
        """
        Entities of a text: a list of {"start", "end", "text", "label", "score"}, offsets in characters, in text order.
        threshold: the lowest score to accept, 0 to 1; without it the model's own. model: its short name, as the page
        lists them; without it the first.
        """
        try:
            return self.models.get(model).extract(text, threshold)
        except DemoError as error:
            raise gr.Error(str(error), print_exception=False) from error


def open_file(path: str | None):
    """Open a dropped file: the text for the box, the choice among the file's texts, and an error message if any."""
    if path is None:
        return gr.skip(), gr.update(visible=False), gr.skip()
    try:
        texts = read_apart(path)
    except DemoError as error:
        return gr.skip(), gr.update(visible=False), message(error=str(error))
    choices = [(name, number) for number, (name, _) in enumerate(texts)]
    return texts[0][1], gr.update(choices=choices, value=0, visible=len(texts) > 1), gr.skip()


def choose(number: int, path: str):
    """The text of this number for the box. The file is read again, so that a visitor's texts take no memory."""
    try:
        return read_apart(path)[number][1], gr.skip()
    except DemoError as error:
        return gr.skip(), message(error=str(error))


def open_example(model: str, file_name: str):
    """An example's text, and the model that reads it."""
    return (HERE / "examples" / file_name).read_text(encoding="utf-8"), model


def read_page(name: str) -> str:
    return (HERE / "page" / name).read_text(encoding="utf-8")


def viewer() -> gr.HTML:
    """The result, drawn in the browser from the messages that are its value."""
    script = "\n".join(map(read_page, ("text.js", "export.js", "labels.js", "table.js", "viewer.js")))
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


def build(models: Models) -> gr.Blocks:
    """Lay out the page and connect its elements with their functions."""
    demo = Demo(models)
    run, extract = on_gpu(demo.run), on_gpu(demo.extract)
    model_queue = {"concurrency_id": "model", "concurrency_limit": 1}
    private = {"api_visibility": "private", "show_progress": "hidden"}
    busy = "(...inputs) => { window.sener.busy(); return inputs; }"
    with gr.Blocks(title="SeNER", analytics_enabled=False) as page:
        gr.Markdown(INTRO, elem_classes="intro")
        model = gr.Radio(
            [(offer.title, offer.name) for offer in models.offers.values()],
            value=models.default,
            label="Model",
            visible=len(models.offers) > 1,
            elem_id="model",
        )
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
                start = gr.Button("Find entities", variant="primary", elem_id="start")
        with gr.Row(elem_classes="examples"):
            gr.Markdown("Or try", elem_classes="hint")
            examples = [
                (gr.Button(title, size="sm"), offer.name, file_name)
                for offer in models.offers.values()
                for title, file_name in offer.examples
            ]
        result = viewer()
        gr.Markdown(LIMITS.format(seconds=models.max_seconds), elem_classes="hint")
        with gr.Accordion("Use it from a program", open=False):
            gr.Markdown(API.replace("{models}", ", ".join(f"`{name}`" for name in models.offers)))

        inputs = [text, model]
        running = [gr.on([start.click, text.submit], run, inputs, result, js=busy, **private, **model_queue)]
        for button, name, file_name in examples:
            load = partial(open_example, name, file_name)
            loaded = button.click(load, None, inputs, js=busy, api_name=Path(file_name).stem, **private)
            running.append(loaded.then(run, inputs, result, **private, **model_queue))
        file.change(open_file, file, [text, choice, result], **private)
        choice.input(choose, [choice, file], [text, result], **private)
        for each in running:
            each.failure(None, js="() => window.sener.ended()")
        result.cancel(None, cancels=running)
        gr.api(extract, api_name="extract", **model_queue)
    page.queue(max_size=MAX_WAITING)
    page._queue.pending_messages_per_session.max_size = MAX_SESSIONS  # results that nobody fetched; 2,000 by default
    return page


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


def max_seconds() -> float:
    value = os.environ.get("SENER_MAX_SECONDS") or MAX_SECONDS
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise DemoError(f"SENER_MAX_SECONDS is {value!r}: expected a number of seconds above 0.")
    return seconds


def main() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.reconfigure(errors="backslashreplace")  # a character that the terminal lacks must not end the page
    try:
        models = Models(on_offer(os.environ.get("SENER_MODEL")), max_seconds())
    except DemoError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    refuse_downloads()
    with tempfile.TemporaryDirectory(prefix="sener-demo-") as folder:
        end_on_signals(folder)
        os.environ["GRADIO_TEMP_DIR"] = folder  # Gradio refuses a request that names a file outside of it
        keep_clean(Path(folder))
        page = build(models)
        page.launch(
            theme=THEME,
            css=read_page("viewer.css"),
            footer_links=["api", "settings"],
            max_file_size=MAX_FILE * 1_000_000,
            state_session_capacity=MAX_SESSIONS,
            app_kwargs={"middleware": [Middleware(Guard)]},
            enable_monitoring=False,
            run_history=False,
            ssr_mode=False,
            prevent_thread_lock=True,
        )
        wanted = os.environ.get("GRADIO_SERVER_PORT", "7860")
        if str(page.server_port) != wanted:
            print(f"note: port {wanted} is taken, perhaps by another page; this is at {page.local_url}", flush=True)
        page.block_thread()


if __name__ == "__main__":
    main()
