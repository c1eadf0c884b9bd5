"""Run a job in a worker: a batch of texts, some examples of Hypothesis, or a long text."""

import ctypes
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from .plan import Finding, Job, Result
from .properties import KINDS, check_cover, check_entities, check_pipeline, check_texts, check_words, pipeline
from .texts import EMOJI, HTML, LETTERS, MARKS, SPACES, TOKENS, ZERO_WIDTH, batch, long_text


STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MODEL_SHARE = 16  # one batch in so many goes through the model
EXAMPLES = 300  # of Hypothesis, in a job
# Limits of the memory that the processor or the tiny model adds: a constant, and bytes per character. Measured with a
# million characters: at most 2.2 kB per character if NFKC expands it to 18 characters, else 1.6 kB.
BASE, PER_CHARACTER = 256e6, 4e3
# Limit of the time for four times the text: linear code takes 4 times as long, quadratic code 16 times.
GROWTH = 9
NOISE = 0.2  # CPU seconds; shorter times are not compared


def run(job: Job) -> Result:
    torch.set_num_threads(1)  # measure the rates of one core
    start = time.process_time()
    result = {"batches": run_batch, "hypothesis": run_hypothesis, "long": run_long}[job.part](job)
    result.seconds = time.process_time() - start
    result.peak = memory("VmHWM")
    ctypes.CDLL(None).malloc_trim(0)  # give freed memory back: the rest is in use
    result.kept = memory("VmRSS")
    return result


def run_batch(job: Job) -> Result:
    """Check a batch with one of the tokenizers in turn, as strings and as lists of words; some with the model."""
    named = batch(job.seed, job.number)
    kind = list(KINDS)[job.number % len(KINDS)]
    texts = [text for _, text in named]
    result = Result(Counter(name for name, _ in named))

    def check(texts: list[str]):
        if job.number % MODEL_SHARE == 0:
            result.entities += check_pipeline(kind, texts, allow_nested=job.number % (2 * MODEL_SHARE) == 0)
            return
        processor = pipeline(kind).processor
        check_texts(processor, texts)
        check_words(processor, [text.split(" ") for text in texts[::8]])

    if error_of(check, texts):
        # Find the text that fails; if none fails alone, keep the batch.
        alone = [(name, text, error) for name, text in named if (error := error_of(check, [text]))]
        for name, text, error in alone[:3]:
            small = smallest(text, lambda text: error_of(check, [text]) is not None)
            result.findings.append(Finding("batches", f"{kind}: {error}", [small], name))
        if not alone:
            result.findings.append(Finding("batches", f"{kind}: {error_of(check, texts)}", texts))
    return result


FRAGMENTS = [*SPACES, *MARKS, *ZERO_WIDTH, *TOKENS, *HTML, *EMOJI, *LETTERS, *"01.,-_\ud800\udfff\0\x1c"]
ANY_TEXT = st.lists(
    st.sampled_from(FRAGMENTS) | st.characters(exclude_categories=()) | st.sampled_from(" ab1.,-"), max_size=40
).map("".join)


def run_hypothesis(job: Job) -> Result:
    """Run examples of Hypothesis, which shrinks failures itself."""
    result, last = Result(), []

    @seed(f"{job.seed} {job.number}")
    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(ANY_TEXT, min_size=1, max_size=3), st.sampled_from(list(KINDS)))
    def check(texts, kind):
        last[:] = texts
        result.texts["by Hypothesis"] += len(texts)
        check_texts(pipeline(kind).processor, texts)

    if error := error_of(check):
        result.findings.append(Finding("hypothesis", error, list(last)))
    return result


def run_long(job: Job) -> Result:
    """Check a text of n, 2n and 4n characters: linear time and memory, valid offsets."""
    result, size = Result(Counter({"long": 3})), job.size
    text = long_text(job.name, size)
    extract = pipeline("checkpoint" if job.kind == "model" else job.kind)
    if job.kind == "model":
        extract(text[: size // 10])  # warm-up
    sizes = (size // 4, size // 2, size)
    seconds, grown = zip(*(measured(extract, text[:size], job.kind) for size in sizes), strict=True)
    if seconds[2] > NOISE and seconds[2] > GROWTH * seconds[0]:  # measure again: the machine may have been busy
        again = [measured(extract, text[:size], job.kind)[0] for size in sizes]
        seconds = list(map(min, seconds, again))
    times = ", ".join(f"{taken:.2f} s" for taken in seconds)
    result.growth = [
        f"{job.kind:10} {job.name:20} {size:>9,} characters: {times} for 1/4, 1/2, 1; {max(grown) / 1e6:,.0f} MB"
    ]
    errors = [error_of(check_long, extract, text, job.kind)]
    if seconds[2] > NOISE and seconds[2] > GROWTH * seconds[0]:
        errors.append(f"time is not linear: {times} for a quarter, a half and all of the text")
    if any(more > BASE + PER_CHARACTER * size for more, size in zip(grown, sizes, strict=True)):
        errors.append(f"memory is not bounded: {[int(more / 1e6) for more in grown]} MB for a quarter, a half and all")
    result.findings = [Finding("long", f"{job.kind}: {error}", [text], job.name) for error in errors if error]
    return result


def measured(extract, text: str, kind: str) -> tuple[float, int]:
    """CPU seconds, and the growth of the process's peak memory in bytes."""
    ctypes.CDLL(None).malloc_trim(0)
    CLEAR.write_text("5")  # reset the peak
    before, start = memory("VmRSS"), time.process_time()
    extract(text) if kind == "model" else extract.processor(text)
    return time.process_time() - start, memory("VmHWM") - before


def check_long(extract, text: str, kind: str):
    """Check that words cover the whole text; the slow references check a slice of it."""
    check_cover(text, extract.processor.split_words(text))
    text = text[: len(text) // 20]
    offsets = check_texts(extract.processor, [text])[0]
    if kind == "model":
        check_entities(text, offsets, extract(text), extract.model.config, allow_nested=True)


def memory(name: str) -> int:
    """A value of Linux's process status, in bytes."""
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024


def error_of(check: Callable, *arguments) -> str | None:
    try:
        check(*arguments)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of the tokenizer is not an Exception
        return f"{type(error).__name__}: {error}"[:500]
    return None


def smallest(text: str, fails: Callable[[str], bool], tries: int = 500) -> str:
    """Shrink a failing text: remove halves, quarters, ... and single characters while it still fails."""
    step = max(1, len(text) // 2)
    while step:
        place = 0
        while place < len(text) and tries:
            less, tries = text[:place] + text[place + step :], tries - 1
            if fails(less):
                text = less
            else:
                place += step
        step //= 2
    return text
