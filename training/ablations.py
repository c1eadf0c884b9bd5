"""
Measure what each part of SeNER adds: train and score a base configuration, and rows that differ from it in one field.

    python training/ablations.py --config training/configs/scholar_xl_small.yaml --train_file train.jsonl \
        --dev_file dev.jsonl --output_dir ablations --seeds 1 2 3 [--rows attention mask_share] [--field value ...]
    python training/ablations.py --by_length my-model --dev_file dev.jsonl --output_dir ablations

All other options are passed to training/train.py. The rows are those of the paper's Table 3 (`attention`,
`log_n_scaling`, `span_interaction`, `lora_rank`, `mask_share`) and half the band (`triangles`). If the base has both
triangles, there are also the two read-outs (`vertical_readout`) and the two means (`triangle_mean`: the weights of the
base row, scored again). Each row and seed is a run of training/train.py and of training/score.py in its own folder.

The command can be killed and started again: it skips rows that have a report, and resumes a training from its newest
state. It writes `ablations.json` and `ablations.md`, and prints the latter.

`--by_length` scores one trained model on texts cut into chunks of at most 256, 512, ... 8,192 tokens, without overlap,
and on whole texts (the paper's Figure 2a). It writes `by_length.json` after each length, and `by_length.md` and
`by_length.png` at the end. The same command goes on after the lengths that are there.
"""

from training.common.start import end_with_parent, run, undone_by_signal


# isort: split
import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from modeling_sener import SenerConfig, SenerModel, SenerProcessor
from modeling_sener.configuration_sener import CHOICES
from modeling_sener.windows import window_bounds
from training.common.files import write_text
from training.common.progress import progress_bar
from training.corpus.data import Document, is_file, stream_files
from training.corpus.windows import encode_document
from training.evaluation.score_report import percent
from training.evaluation.scoring import as_spans, score
from training.fitting.checkpoint import load_checkpoint
from training.fitting.fields import FieldError, TrainingFields, parse_fields
from training.inference.extraction import extract


HERE = Path(__file__).parent
SWITCHES = {"log_n_scaling": True, "lora_rank": 8, "mask_share": 0.15}  # the value when on; 0 is off
ROWS = ("attention", "log_n_scaling", "span_interaction", "lora_rank", "mask_share", "triangles",
        "vertical_readout", "triangle_mean")  # fmt: skip
OF_BOTH_TRIANGLES = ("vertical_readout", "triangle_mean")
SCORED_ONLY = "triangle_mean"  # training does not use it
FREE_FIELDS = ("output_dir", "resume", "seed", "save_steps", "report_to", "timeout")  # may differ between calls
RATIOS = ("precision", "recall", "f1")
BASE = "base"
LENGTHS = tuple(2**power for power in range(8, 14))  # tokens


def parse_arguments(arguments: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """Parse the options of this command; returns them, and the other arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="seeds of each row (default: the base's)")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS, metavar="FIELD",
                        help=f"fields to change (default: {', '.join(ROWS)})")  # fmt: skip
    parser.add_argument("--by_length", metavar="MODEL", help="score this checkpoint on chunks of the texts instead")
    return parser.parse_known_args(arguments)


def base_values(fields: TrainingFields) -> dict:
    """The value of each of `ROWS` in the base configuration; raises `ValueError` for a wrong field of the model."""
    config = SenerConfig(**{"triangles": "upper", **fields.model})  # as `SenerModel.from_backbone`
    return {name: getattr(fields, name) if hasattr(fields, name) else getattr(config, name) for name in ROWS}


def rows_of(base: dict, names: list[str]) -> dict[str, dict]:
    """The rows: name -> the field that differs from the base and its value; the base itself comes first."""
    rows: dict[str, dict] = {BASE: {}}
    for name in names:
        if name in SWITCHES:
            on = SWITCHES[name]
            values = [type(on)(0) if base[name] else on]
        elif name in OF_BOTH_TRIANGLES and base["triangles"] == "upper":
            values = []
        else:
            values = [value for value in CHOICES[name] if value != base[name]]
        for value in values:
            # The upper triangle has only one read-out.
            readout = {"vertical_readout": "transposed"} if value == "upper" else {}
            rows[f"{name}={as_text(value)}"] = {name: value, **readout}
    return rows


def check_rows(rows: dict[str, dict], training: list[str]) -> None:
    """Raise `FieldError` for a row that the base's other fields do not allow, before the first one is trained."""
    for row, changes in rows.items():
        try:
            parse_fields([*training, *arguments_of(changes)])
        except FieldError as error:
            raise FieldError(f"row {row}: {error}; change the base, or choose --rows without it") from error


def arguments_of(changes: dict) -> list[str]:
    return [part for name, value in changes.items() for part in (f"--{name}", as_text(value))]


def as_text(value) -> str:
    """Format a value for YAML and the command line."""
    return value if isinstance(value, str) else json.dumps(value)


def check_same_base(folder: Path, fields: TrainingFields) -> None:
    """Store the base fields in `folder`; raises `FieldError` if it has reports of another base."""
    signature = {name: value for name, value in asdict(fields).items() if name not in FREE_FIELDS}
    file = folder / "fields.json"
    if file.is_file():
        for name, value in json.loads(file.read_text(encoding="utf-8")).items():
            if signature.get(name) != value:
                raise FieldError(
                    f"{folder}: {name} was {value!r} for the rows that are there and is {signature.get(name)!r} now: "
                    "give the same value, or another output_dir"
                )
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(signature, indent=1) + "\n", encoding="utf-8")


def run_command(script: str, arguments: list, log: Path, tell: Callable[[str], None]) -> None:
    """
    Run one of this folder's commands. Its output goes to `log`; its lines on epochs go to `tell`, too.

    Raises:
        ValueError: the command failed; has its error message.
    """
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}
    with log.open("a", encoding="utf-8", buffering=1) as file, subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=file, env=environment, encoding="utf-8", errors="replace",
        preexec_fn=end_with_parent if sys.platform == "linux" else None,  # Windows has no such argument
    ) as child, undone_by_signal(child.terminate):  # fmt: skip
        begin = file.tell()
        try:
            for line in child.stdout:
                file.write(line)
                if line.startswith("epoch "):
                    tell(line.rstrip())
        except BaseException:
            child.terminate()  # or else `Popen` would wait for its end
            raise
    if child.returncode:
        with log.open("rb") as file:
            file.seek(begin)
            reasons = re.findall(r"error: (.*)", file.read().decode("utf-8", errors="replace"))
        raise ValueError(f"{script} failed: {reasons[-1] if reasons else f'exit code {child.returncode}'} ({log})")


def run_row(folder: Path, base: Path, changes: dict, seed: int, training: list[str], dev_file: list[str],
            tell: Callable[[str], None]) -> None:  # fmt: skip
    """
    Train and score one row with one seed: `folder` gets `model/`, `log.txt` and, last, `report.json`.

    Args:
        base: the same seed's folder of the base row.
        training: the arguments of training/train.py that all rows share.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model, log = folder / "model", folder / "log.txt"
    if SCORED_ONLY in changes:
        shutil.copytree(base / "model", model, ignore=shutil.ignore_patterns("checkpoints"), dirs_exist_ok=True)
        config = SenerConfig.from_pretrained(model)
        config.triangle_mean = changes[SCORED_ONLY]
        config.save_pretrained(model)
    else:
        given = [*training, *arguments_of(changes), "--output_dir", model, "--seed", seed, "--resume"]
        run_command("train.py", given, log, tell)
    aside = folder / "report.partial"
    run_command("score.py", ["--model", model, "--data", *dev_file, "--output", aside], log, tell)
    os.replace(aside, folder / "report.json")
    # States are for a training that has not ended, and they are three times the size of the model.
    for state in (model / "checkpoints").glob("state_*"):
        shutil.rmtree(state)


def dev_sources(files: list[str]) -> list[str]:
    """Name the split of data sets for score.py: `validation`, as in training."""
    return [file if is_file(file) or ":" in file else f"{file}:validation" for file in files]


def summarise_rows(folder: Path, rows: dict[str, dict], seeds: list[int]) -> list[dict]:
    """
    Summarise each row that has reports: `row`, `changes`, `seeds`; each ratio per seed (`values`), its `mean` and
    sample `deviation` (`None` for one seed); `difference`, the mean of F1 minus the base's F1 with the same seed.
    """
    entries, base = [], {}
    for row, changes in rows.items():
        files = {seed: folder / row / f"seed_{seed}" / "report.json" for seed in seeds}
        reports = {seed: json.loads(file.read_text(encoding="utf-8")) for seed, file in files.items()
                   if file.is_file()}  # fmt: skip
        base = base or reports
        if not reports:
            continue
        entry = {"row": row, "changes": changes, "seeds": list(reports)}
        for name in RATIOS:
            values = [report[name] for report in reports.values()]
            deviation = stdev(values) if len(values) > 1 else None
            entry[name] = {"values": values, "mean": fmean(values), "deviation": deviation}
        entry["difference"] = fmean(report["f1"] - base[seed]["f1"] for seed, report in reports.items())
        entries.append(entry)
    return entries


def results_table(entries: list[dict], fields: TrainingFields, base: dict) -> str:
    """Format the output of `summarise_rows` as a Markdown table, in per cent, below a line on the base."""
    facts = {"backbone": Path(fields.backbone).name, "num_epochs": fields.num_epochs, "max_tokens": fields.max_tokens,
             "span_window": SenerConfig(**fields.model).span_window, **base}  # fmt: skip
    lines = [
        f"Micro scores on {', '.join(Path(file).name for file in fields.dev_file)} in per cent, mean ± standard "
        f"deviation over the seeds. Base: {', '.join(f'{name} {as_text(value)}' for name, value in facts.items())}.",
        "",
        "| row | seeds | precision | recall | F1 | F1 against base |",
        "|---|---|---|---|---|---|",
    ]
    for entry in entries:
        cells = [entry["row"], ", ".join(map(str, entry["seeds"]))]
        for name in RATIOS:
            mean, deviation = percent(entry[name]["mean"], 2), entry[name]["deviation"]
            cells.append(mean if deviation is None else f"{mean} ± {percent(deviation, 2)}")
        cells.append("" if entry["row"] == BASE else f"{100 * entry['difference']:+.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def run_rows(options: argparse.Namespace, training: list[str]) -> None:
    """Run all rows with the first seed, then with the next one; write the table after each run."""
    fields = parse_fields(training, __doc__)
    base = base_values(fields)
    rows, seeds = rows_of(base, options.rows), list(dict.fromkeys(options.seeds or [fields.seed]))
    check_rows(rows, training)
    folder = Path(fields.output_dir)
    check_same_base(folder, fields)
    plan, sources = [(row, seed) for seed in seeds for row in rows], dev_sources(fields.dev_file)
    with progress_bar(total=len(plan), unit="run") as bar:

        def tell(line: str) -> None:
            bar.write(f"{bar.desc}{line}", file=sys.stderr)

        for row, seed in plan:
            own = folder / row / f"seed_{seed}"
            bar.set_description(f"{row}, seed {seed}")
            if not (own / "report.json").is_file():
                run_row(own, folder / BASE / f"seed_{seed}", rows[row], seed, training, sources, tell)
            entries = summarise_rows(folder, rows, seeds)
            text = json.dumps(
                {"base": json.loads((folder / "fields.json").read_text(encoding="utf-8")), "rows": entries}, indent=1
            )
            (folder / "ablations.json").write_text(text + "\n", encoding="utf-8")
            (folder / "ablations.md").write_text(results_table(entries, fields, base), encoding="utf-8")
            bar.update()
    print((folder / "ablations.md").read_text(encoding="utf-8"), end="")


def document_chunks(processor: SenerProcessor, document: Document, tokens: int | None) -> tuple[list, int]:
    """
    Split a document into chunks of whole words with at most `tokens` tokens each, special tokens included (a word with
    more tokens is a chunk of its own); `None` is the whole text.

    Returns:
        (start in the text's units, text) of each chunk; the number of gold spans that a seam cuts.
    """
    if tokens is None:
        return [(0, document.text)], 0
    encoded = encode_document(processor, document)
    offsets = processor([document.text], is_split_into_words=document.is_split).word_offsets[0]
    cuts = window_bounds(encoded.bounds, [], tokens - len(encoded.prefix) - len(encoded.suffix), 0)
    chunks = [(offsets[first][0], document.text[offsets[first][0] : offsets[last - 1][1]]) for first, last in cuts]
    seams = [first for first, _ in cuts]
    return chunks, sum(bisect_left(seams, last) > bisect_right(seams, first) for first, last, _ in encoded.entities)


def score_by_length(
    model: SenerModel, processor: SenerProcessor, documents: list[Document], tokens: int | None
) -> dict:
    """Micro scores on chunks of at most `tokens` tokens, with `interval`, `tokens` and `cut_entities`."""
    texts, origin, cut_entities = [], [], 0
    for number, document in enumerate(documents):
        chunks, cut = document_chunks(processor, document, tokens)
        cut_entities += cut
        for start, text in chunks:
            texts.append(text)
            origin.append((number, start))
    found: list[list] = [[] for _ in documents]
    for (number, shift), entities in zip(origin, extract(model, processor, texts, progress=True), strict=True):
        found[number] += [(start + shift, end + shift, label) for start, end, label in as_spans(entities)]
    result = score([document.entities for document in documents], found)
    return {"tokens": tokens, "cut_entities": cut_entities, "interval": result["interval"],
            **{name: result[name] for name in RATIOS}}  # fmt: skip


def length_name(tokens: int | None) -> str:
    return "whole" if tokens is None else f"{tokens:,}"


def length_table(points: list[dict]) -> str:
    lines = ["| tokens at once | gold cut by a seam | precision | recall | F1 | 95 % interval |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for point in points:
        low, high = point["interval"]["f1"]
        lines.append(f"| {length_name(point['tokens'])} | {point['cut_entities']:,} | "
                     + " | ".join(percent(point[name], 2) for name in RATIOS)
                     + f" | {percent(low, 2)}–{percent(high, 2)} |")  # fmt: skip
    return "\n".join(lines) + "\n"


def length_plot(points: list[dict], file: Path) -> None:
    """Plot F1 with its interval against the number of tokens that the model sees at once."""
    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    axes = figure.subplots()
    places, f1 = range(len(points)), [point["f1"] for point in points]
    errors = [[abs(point["f1"] - point["interval"]["f1"][side]) for point in points] for side in (0, 1)]
    axes.errorbar(places, f1, yerr=errors, color="#1f5fa8", ecolor="#9aa5b1", marker="o", markersize=5, capsize=3)
    axes.set_xticks(places, [length_name(point["tokens"]) for point in points])
    axes.set_xlabel("tokens of text that the model sees at once")
    axes.set_ylabel("F1 on dev (95 % interval)")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=200)


def checksum_of(model: SenerModel, documents: list[Document]) -> int:
    """CRC-32 of all that scores depend on but this code: weights, config, documents."""
    content = repr((model.config.to_json_string(), documents))
    checksum = zlib.crc32(content.encode("utf-8", "surrogatepass"))
    for weight in model.state_dict().values():
        checksum = zlib.crc32(weight.cpu().numpy().tobytes(), checksum)
    return checksum


def read_points(file: Path, checksum: int) -> dict[int | None, dict]:
    """The points of an earlier call with this checksum, by `tokens`."""
    if not file.is_file():
        return {}
    content = json.loads(file.read_text(encoding="utf-8"))
    return {point["tokens"]: point for point in content["points"]} if content.get("checksum") == checksum else {}


def run_lengths(name: str, arguments: list[str]) -> None:
    """Run `--by_length`."""
    parser = argparse.ArgumentParser(prog="ablations.py --by_length MODEL", allow_abbrev=False)
    parser.add_argument("--dev_file", nargs="+", required=True, metavar="FILE", help="JSON Lines with gold entities")
    parser.add_argument("--output_dir", required=True, help="folder for the table and the plot")
    options = parser.parse_args(arguments)
    model, processor = load_checkpoint(name)
    model.to(torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu")
    documents = list(stream_files(options.dev_file, model.config.labels, "validation", "reading dev_file"))
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    content = {"model": name, "data": options.dev_file, "checksum": checksum_of(model, documents), "points": []}
    done = read_points(folder / "by_length.json", content["checksum"])
    for tokens in progress_bar([*LENGTHS, None], unit="length"):
        point = done[tokens] if tokens in done else score_by_length(model, processor, documents, tokens)
        points = content["points"] = [*content["points"], point]
        if tokens not in done:
            write_text(folder / "by_length.json", json.dumps(content, indent=1) + "\n")
    (folder / "by_length.md").write_text(length_table(points), encoding="utf-8")
    length_plot(points, folder / "by_length.png")
    print(length_table(points), end="")


def main(arguments: list[str] | None = None) -> None:
    options, others = parse_arguments(arguments)
    if options.by_length:
        run_lengths(options.by_length, others)
    else:
        run_rows(options, others)


if __name__ == "__main__":
    run(main, "the same command goes on")
