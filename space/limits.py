"""Limits of the page, and the errors that name them."""

MAX_CHARACTERS = 1_000_000  # of a text
MAX_TOKENS = 250_000  # of a text: bounds the memory of a run
MAX_SECONDS = 180.0  # of a run; SENER_MAX_SECONDS overrides it
MAX_WAITING = 60  # requests in the queue; one runs at a time
MAX_SESSIONS = 256  # visitors whose last text and result Gradio holds in memory
MAX_FILE = 20  # megabytes
MAX_RECORDS = 1000  # of a .jsonl file: the page offers them in one list
READING_SECONDS = 30  # for a file
READING_MEMORY = 2_000_000_000  # bytes, for a file
KEEP_FILES = 600  # seconds that a file is kept at least; also the seconds between two clean-ups


class DemoError(ValueError):
    """The input is faulty, or beyond what the page can do. The page shows the message."""


def too_long(size: int, limit: int, unit: str) -> DemoError:
    return DemoError(
        f"This text has {size:,} {unit}; this page takes up to {limit:,}. Nothing was cut and nothing was run: "
        "split the text, or run the model on your own machine, where a text may have any length."
    )


def too_slow(seconds: float) -> DemoError:
    return DemoError(
        f"This text took longer than the {seconds:g} seconds that this page gives a text, and was stopped. Nothing of "
        "it is shown: split the text, or run the model on your own machine, where a text may take any time."
    )
