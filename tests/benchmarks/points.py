"""What is measured: each point in a process of its own."""

from dataclasses import dataclass, field


# Settings of `SenerConfig`. Both windows are 128 and C = 32, p = 100 by default.
MODELS = {
    "SeNER": {},
    "SeNER w=16": {"span_window": 16},
    # What UTC-IE and CNN-NER compute: the whole square of pairs in memory, and full attention.
    "square + plus-shaped attention": {"attention": "full", "span_window": None, "span_interaction": "bispa"},
    "square + convolutions": {"attention": "full", "span_window": None, "span_interaction": "cnn"},
}
LENGTHS = (512, 2048, 4096, 16384, 65536)
GROUPS = ("forward", "training", "entities", "encoder", "reference", "gliner", "longest")


@dataclass(frozen=True)
class Point:
    """
    Args:
        what: "forward" (`model(**inputs)`), "training" (with backward pass and AdamW step), "entities" (string to
            entities), "encoder", "transformers encoder", "dense reference", "gliner", or "bias": no time, a setting.
        length: pieces of the text; words of it for "entities" and "gliner".
        bias: what the classifier's bias is set to, so that few spans pass.
        runs: at most; the median counts.
        batch_size: windows that run together, for "gliner".
    """

    what: str
    length: int
    model: str = "SeNER"
    precision: str = "float32"
    checkpointing: bool = False
    bias: float = 0.0
    runs: int = field(default=3, compare=False)
    batch_size: int = 1

    def __str__(self):
        extras = [self.precision] * (self.precision != "float32") + ["checkpointing"] * self.checkpointing
        extras += [f"batches of {self.batch_size}"] * (self.batch_size > 1)
        if self.what in ("forward", "training", "entities", "bias"):
            extras.insert(0, self.model)
        return f"{self.what}, {self.length:,}" + "".join(f", {extra}" for extra in extras)


def plan(group: str, quick: bool) -> list[Point]:
    """The points of a group that are known beforehand: "gliner" and "longest" choose theirs as they go."""
    lengths = (128, 256) if quick else LENGTHS
    short = (256,) if quick else (512, 2048, 4096)
    middle = 256 if quick else 2048
    runs = 1 if quick else 3
    if group == "forward":
        points = [Point("forward", length, runs=runs) for length in lengths]
        return points + [Point("forward", length, precision="bfloat16", runs=runs) for length in short]
    if group == "training":
        settings = [(length, "float32") for length in short] + [(middle, "bfloat16")]
        return [
            Point("training", length, precision=precision, checkpointing=checkpointing, runs=runs)
            for checkpointing in (False, True)
            for length, precision in settings
        ]
    if group == "entities":
        return [Point("entities", length, model, runs=runs) for model in ("SeNER", "SeNER w=16") for length in lengths]
    if group == "encoder":
        points = [Point("encoder", length, runs=runs) for length in lengths]
        return points + [Point("transformers encoder", length, runs=runs) for length in short]
    if group == "reference":
        return [Point("dense reference", length, runs=runs) for length in ((128,) if quick else (128, 256, 512))]
    return []
