"""The points to measure, each in a process of its own."""

from dataclasses import dataclass, field, replace


def model_name(triangles: str, window: int = 128, encoder: str = "DeBERTa") -> str:
    return f"{encoder} {triangles} w={window}"


UPPER, BOTH = model_name("upper"), model_name("both")
SQUARES = ("square + plus-shaped attention", "square + convolutions")
# Name -> encoder of text.py, settings of `SenerConfig`. Attention windows are 128, C = 32, p = 100. Each `upper` is
# followed by its `both`, so that a drift of the machine's speed hardly changes their ratio.
MODELS = {
    model_name(triangles, window, encoder): {"encoder": encoder, "triangles": triangles, "span_window": window}
    for encoder in ("DeBERTa", "MiniLM")
    for window in (128, 16)
    for triangles in ("upper", "both")
}
# UTC-IE and CNN-NER keep the square of pairs and attend to the whole text. Without a span window, a band of the upper
# triangle has N rows of N cells, as many as their square; a band of both triangles would have N (2N - 1).
MODELS |= {
    name: {"encoder": "DeBERTa", "triangles": "upper", "span_window": None, "attention": "full",
           "span_interaction": interaction}
    for name, interaction in zip(SQUARES, ("bispa", "cnn"), strict=True)
}  # fmt: skip
PEERS = ("GLiNER", "GLiNER2", "GLiNER2.5")
GROUPS = ("forward", "training", "entities", "encoder", "reference", "peer", "longest")
ACCELERATOR = "accelerator"  # the group that `make gpu` measures


@dataclass(frozen=True)
class Point:
    """
    Args:
        what: "forward" (`model(**inputs)`), "training" (with backward pass and AdamW step), "entities" (string to
            entities), "peer" (likewise), "encoder", "transformers encoder", "dense reference", or "bias" (no time: the
            classifier's bias for "entities").
        length: tokens of the text; words of it for "entities" and "peer".
        model: of `MODELS` or `PEERS`.
        bias: of the classifier, set so that few spans pass the threshold.
        runs: the most runs; the result is their median.
        batch_size: windows that run together, for "peer".
    """

    what: str
    length: int
    model: str = UPPER
    precision: str = "float32"
    checkpointing: bool = False
    bias: float = 0.0
    runs: int = field(default=3, compare=False)
    batch_size: int = 1

    def __str__(self):
        extras = [self.precision] * (self.precision != "float32") + ["checkpointing"] * self.checkpointing
        extras += [f"batches of {self.batch_size}"] * (self.batch_size > 1)
        if self.what in ("forward", "training", "entities", "peer", "bias"):
            extras.insert(0, self.model)
        return f"{self.what}, {self.length:,}" + "".join(f", {extra}" for extra in extras)


def plan(group: str, quick: bool) -> list[Point]:
    """The points of a group that are known in advance; "peer" and "longest" choose theirs during the run."""
    short, middle, long = (128, 256, 384) if quick else (512, 2048, 4096)
    longer, longest = (512, 1024) if quick else (16384, 65536)
    runs = 1 if quick else 3
    banded = [name for name in MODELS if name not in SQUARES]
    main = (UPPER, BOTH)
    if group == "forward":
        points = [Point("forward", length, model) for length in (short, middle) for model in main]
        points += [Point("forward", long, model) for model in banded]
        points += [Point("forward", long, model, precision="bfloat16") for model in main]
        points += [Point("forward", longer, model, runs=1) for model in main]
    elif group == "training":
        points = [Point("training", middle, model) for model in banded]
        points += [Point("training", middle, model, checkpointing=True) for model in main]
    elif group == "entities":
        points = [Point("entities", long, model) for model in banded]
        points += [Point("entities", longer, model, runs=1) for model in banded if model.startswith("DeBERTa")]
        points += [Point("entities", longest, UPPER, runs=1)]
    elif group == "encoder":
        points = [Point("encoder", length) for length in (short, middle, long)] + [Point("encoder", longer, runs=1)]
        points += [Point("transformers encoder", length) for length in (short, middle, long)]
    elif group == "reference":
        points = [Point("dense reference", length) for length in ((128,) if quick else (128, 256, 512))]
    elif group == ACCELERATOR:
        points = [
            Point(what, length, model, precision=precision)
            for what in ("forward", "training", "entities")
            for length in ((long,) if what == "training" else (long, longer))
            for precision in (("float32",) if what == "entities" else ("float32", "bfloat16"))
            for model in main
        ]
    else:
        points = []
    return [replace(point, runs=min(point.runs, runs)) for point in points]
