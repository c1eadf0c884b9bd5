"""Load a model and run it on a text, with progress and a way to stop it."""

import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from limits import MAX_CHARACTERS, MAX_SECONDS, MAX_TOKENS, DemoError, too_long, too_slow
from torch import nn
from transformers import AutoModel, AutoProcessor


FLOOR = 0.05  # the lowest threshold that the page offers: spans with a lower score are dropped
ENCODER_SHARE = 0.5  # of the time of a run; it was 0.4 with one encoder and 0.7 with another
POLL = 0.2  # seconds: a stopped run is noticed after these at the latest

# The settings of the page: one threshold for all labels (at least `FLOOR`), or the model's own; nested spans or not.
MODES = (("floor", True), ("floor", False), ("own", True), ("own", False))


class Stopped(Exception):
    """The visitor cancelled the run, or left."""


@dataclass
class PageRun:
    """The state of one text's computation. The model's hooks report to the run of their thread."""

    num_layers: int
    num_words: int = 1
    max_seconds: float = MAX_SECONDS
    deadline: float = float("inf")  # of time.monotonic
    stop: threading.Event = field(default_factory=threading.Event)
    messages: queue.SimpleQueue = field(default_factory=queue.SimpleQueue)
    layers_done: int = 0
    rows_done: int = 0

    def fraction(self) -> float:
        """The share of the work that is done, 0 to 1."""
        layers, rows = self.layers_done / self.num_layers, self.rows_done / self.num_words
        return ENCODER_SHARE * layers + (1 - ENCODER_SHARE) * min(rows, 1.0)

    def check(self) -> None:
        """Raise if the run was stopped, or is past its deadline."""
        if self.stop.is_set():
            raise Stopped
        if time.monotonic() > self.deadline:
            raise too_slow(self.max_seconds)


_run: ContextVar[PageRun | None] = ContextVar("run", default=None)
_one_at_a_time = threading.Lock()  # for all models together: a stopped run goes on until its next check


class Extractor:
    """
    A checkpoint's model and processor.

    Args:
        name: a folder, or a repository on the Hub as `user/name@revision`. The revision is required because the
            repository's code is run.
        max_seconds: the longest computation of a text.

    Raises:
        DemoError: the folder or repository does not exist, or is no SeNER checkpoint.
    """

    def __init__(self, name: str, max_seconds: float = MAX_SECONDS):
        self.max_seconds = max_seconds
        self.model, self.processor = load(name)
        self.model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self.labels: list[str] = self.processor.config.labels
        self.num_layers = watch(self.model)

    def run(self, text: str, thresholds: torch.Tensor, finish: Callable) -> Iterator:
        """
        Run the model in a thread. Yields the share that is done (a float, 0 to 1) at least every `POLL` seconds, and
        last the result of `finish(candidates, inputs)`. Closing the iterator stops the run.

        Args:
            thresholds: *Shape:* (R,), as `SenerProcessor.thresholds` returns them.
            finish: gets the model's candidates and the processor's inputs.

        Raises:
            DemoError: the text is too long for this page, or took too long and was stopped.
        """
        if len(text) > MAX_CHARACTERS:
            raise too_long(len(text), MAX_CHARACTERS, "characters")
        run = PageRun(self.num_layers, max_seconds=self.max_seconds)

        def work():
            _run.set(run)  # a new thread has a context of its own
            try:
                with _one_at_a_time:
                    run.messages.put(self.compute(run, text, thresholds, finish))
            except BaseException as error:
                run.messages.put(error)

        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        try:
            message = 0.0
            while isinstance(message, float):
                try:
                    message = run.messages.get(timeout=POLL)
                except queue.Empty:
                    message = run.fraction()
                if isinstance(message, BaseException):
                    raise message
                yield message
            worker.join()  # a thread that still cleans up while Python exits would abort the process
        finally:
            run.stop.set()

    def compute(self, run: PageRun, text: str, thresholds: torch.Tensor, finish: Callable):
        run.deadline = time.monotonic() + run.max_seconds
        run.check()
        inputs = self.inputs(text)
        run.num_words = max(len(inputs.word_offsets[0]), 1)
        candidates = self.model.find_candidates(**inputs.to(self.model.device), thresholds=thresholds)
        run.check()
        return finish(candidates, inputs)

    def inputs(self, text: str):
        """
        The processor's inputs of a text.

        Raises:
            DemoError: the text has more than `MAX_TOKENS` tokens.
        """
        inputs = self.processor(text)
        num_tokens = inputs["input_ids"].shape[1]
        if num_tokens > MAX_TOKENS:
            raise too_long(num_tokens, MAX_TOKENS, "tokens (words or parts of them)")
        return inputs

    def read(self, text: str) -> Iterator[float | dict]:
        """
        Yield progress as `run` does, and last what the page shows: every span that is accepted at some setting, each
        with the modes that accept it.

        One run serves every threshold t of the page. Whether a span is accepted depends only on spans with a higher
        score: the accepted spans with a score of t or more are exactly what a run with threshold t accepts.
        """
        own = self.processor.thresholds()
        lowest = torch.minimum(own, torch.full_like(own, FLOOR))
        return self.run(text, lowest, lambda candidates, inputs: self.shown(text, candidates, inputs))

    def shown(self, text: str, candidates, inputs) -> dict:
        """
        The message for the page: the text, and its entities as one list per field. Offsets count code points. Bit m of
        `modes` is set if `MODES[m]` accepts the span.
        """
        own = self.processor.thresholds().numpy()
        limits = {"own": own, "floor": np.full_like(own, FLOOR)}
        modes: dict[tuple, int] = {}
        for bit, (kind, nested) in enumerate(MODES):
            kept = candidates.take(candidates.score >= limits[kind][candidates.label])
            for entity in self.processor.entities(kept, inputs, allow_nested=nested)[0]:
                key = (entity["start"], entity["end"], self.labels.index(entity["label"]), entity["score"])
                modes[key] = modes.get(key, 0) | 1 << bit
        columns = list(zip(*((*key, bits) for key, bits in sorted(modes.items())), strict=True)) or [()] * 5
        names = ("start", "end", "label", "score", "modes")
        return {
            "text": text,
            "labels": self.labels,
            "entities": dict(zip(names, columns, strict=True)),
            "words": len(inputs.word_offsets[0]),
            "thresholds": dict(zip(self.labels, own.tolist(), strict=True)),
            "nested": self.processor.config.allow_nested,
            "floor": FLOOR,
        }

    def extract(self, text: str, threshold: float | None = None) -> list[dict]:
        """
        The entities of a text, as the pipeline returns them: a list of `{"start", "end", "text", "label", "score"}`.

        Raises:
            DemoError: the text is too long, or the threshold is outside of 0..1.
        """
        if not isinstance(text, str):
            raise DemoError(f"text is of type {type(text).__name__}: pass a string")
        try:
            thresholds = self.processor.thresholds(threshold)
        except ValueError as error:
            raise DemoError(str(error)) from error
        *_, entities = self.run(text, thresholds, lambda *found: self.processor.entities(*found)[0])
        return entities


def load(name: str) -> tuple:
    """Load the model and processor of a folder or of `user/name@revision` on the Hub."""
    repository, _, revision = name.rpartition("@")
    if Path(name).is_dir():
        repository, options = name, {}
        check_folder(Path(name))
    elif not repository:
        raise DemoError(
            f"SENER_MODEL is {name!r}: no such folder. Give the folder of a checkpoint, or a repository on the Hub "
            "with the revision to use, SENER_MODEL=user/name@COMMIT (its code is run here: it must not change unseen)."
        )
    else:
        options = {"revision": revision, "code_revision": revision}
    try:
        model_class, processor_class = classes(repository)
        model = model_class.from_pretrained(repository, trust_remote_code=True, dtype=torch.float32, **options)
        processor = processor_class.from_pretrained(repository, trust_remote_code=True, **options)
    except (OSError, ValueError, RuntimeError, ImportError, KeyError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DemoError(f"{name}: the model cannot be loaded: {first}. {WHAT_TO_DO}") from error
    if not hasattr(model, "find_candidates"):
        raise DemoError(f"{name}: a {type(model).__name__}, not a SeNER model. {WHAT_TO_DO}")
    return model, processor


WHAT_TO_DO = "Check the name, the revision and the network, or name a folder that training wrote."


def classes(repository: str) -> tuple[type, type]:
    """
    The classes that load a model and a processor: `AutoModel` and `AutoProcessor`, which run the repository's code. A
    folder without a copy of the code needs the package `modeling_sener`, which stands beside this folder.
    """
    folder = Path(repository)
    if folder.is_dir() and not (folder / "modeling_sener.py").is_file():
        from modeling_sener import SenerModel, SenerProcessor  # imported here, as a Space does not have it

        return SenerModel, SenerProcessor
    return AutoModel, AutoProcessor


def check_folder(folder: Path) -> None:
    """
    Check that a folder holds a SeNER checkpoint, as transformers' own message would be long.

    Raises:
        DemoError: names the file.
    """
    try:
        fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DemoError(
            f"{folder}: no SeNER checkpoint: config.json cannot be read ({error}). {WHAT_TO_DO}"
        ) from error
    if not isinstance(fields, dict) or fields.get("model_type") != "sener":
        raise DemoError(f'{folder}: no SeNER checkpoint: config.json has no model_type "sener". {WHAT_TO_DO}')


def watch(model: nn.Module) -> int:
    """
    Register hooks that report progress to the run of their thread, and that stop it. They check before every linear
    layer, so that little is computed between two checks. Returns the number of the encoder's layers.
    """

    def look(*_):
        run = _run.get()
        if run is not None:
            run.check()

    def layer_done(*_):
        run = _run.get()
        if run is not None:
            run.layers_done += 1
            run.messages.put(run.fraction())

    def rows_done(module, arguments, logits):
        run = _run.get()
        if run is not None:
            run.rows_done += logits.shape[1]
            run.messages.put(run.fraction())

    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(look)
    layers = max((m for m in model.backbone.modules() if isinstance(m, nn.ModuleList)), key=len)
    for layer in layers:
        layer.register_forward_hook(layer_done)
    model.classifier.register_forward_hook(rows_done)
    return len(layers)
