"""Format the results as tables and a plot."""

from pathlib import Path

from .points import BOTH, UPPER, Point
from .targets import GB


Row = tuple[str, ...]


def table(header: Row, rows: list[Row]) -> str:
    """A Markdown table with aligned columns."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, tuple("-" * width for width in widths), *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def point_rows(results: dict[Point, dict]) -> list[Row]:
    rows = []
    for point, result in results.items():
        if "error" in result:
            rows.append((str(point), result["error"], "", "", "", ""))
            continue
        time = result["seconds"]
        rows.append(
            (
                str(point),
                f"{time:.2f}",
                str(result["runs"]),
                f"{point.length / time:,.0f}",
                f"{result['added_bytes'] / GB:.2f}",
                share(result),
            )
        )
    return rows


def share(result: dict) -> str:
    if "flops" not in result:
        return ""
    return f"{100 * result['flops'] / result['seconds'] / result['product_flops_per_second']:.0f} %"


def points_table(results: dict[Point, dict]) -> str:
    header = ("what, length", "seconds", "median of", "words/s", "added GB", "of the matrix-product rate")
    return table(header, point_rows(results))


def longest_table(rows: list[dict]) -> str:
    limit = rows[0]["limit_bytes"] / GB
    header = ("model", f"within {limit:g} GB added", "words", "")
    return table(header, [(row["model"], row["mode"], f"{row['words']:,}", row["note"]) for row in rows])


def targets_table(rows: list[dict]) -> str:
    header = ("what", "published implementation", "target", "aim", "measured", "")
    return table(header, [target_row(row) for row in rows])


def target_row(row: dict) -> Row:
    unit = row["unit"]
    bound = "" if row["bound"] is None else f"at {'most' if row['at_most'] else 'least'} {row['bound']:g} {unit}"
    aim = "" if row["aim"] is None else f"{row['aim']:g} {unit}"
    measured = "not measured" if row["measured"] is None else f"{row['measured']:.3g} {unit}"
    verdict = {None: "", True: "met", False: "missed"}[row["met"]]
    return row["what"], row["published implementation"], bound, aim, measured, verdict


def machine_line(machine: dict) -> str:
    threads = f"{machine['threads']} threads on {machine['processor']} ({', '.join(machine['instruction_sets'])})"
    device = f"{machine['accelerator']} beside {threads}" if machine["accelerator"] else threads
    names = ("torch", "transformers", "gliner", "gliner2")
    versions = ", ".join(f"{name} {machine[name]}" for name in names if machine[name])
    rate = machine["product_flops_per_second"]
    rates = f"; float32 matrix products at {rate[0] / 1e9:,.0f} to {rate[1] / 1e9:,.0f} GFLOP/s" if rate else ""
    return f"{device}, {machine['memory_bytes'] / GB:.0f} GB, {versions}, {machine['date']}{rates}"


CURVES = {  # (what, model) -> label, colour, marker
    ("forward", UPPER): ("SeNER, upper triangle", "#0b6e8f", "o"),
    ("forward", BOTH): ("SeNER, both triangles", "#8a5aa8", "v"),
    ("encoder", UPPER): ("SeNER's encoder alone", "#6cb6cf", "s"),
    ("transformers encoder", UPPER): ("transformers' DeBERTa-v2 alone, full attention", "#c2571a", "^"),
    ("dense reference", UPPER): ("SeNER computed densely (the tests' reference)", "#7a7a7a", "D"),
}


def curve(results: dict[Point, dict], what: str, model: str, field: str, unit: float) -> tuple[list[int], list[float]]:
    """The lengths and values of the float32 points of a model."""
    found = [
        (point.length, result[field] / unit)
        for point, result in results.items()
        if (point.what, point.model, point.precision) == (what, model, "float32") and result.get(field, 0) > 0
    ]
    lengths, values = zip(*sorted(found), strict=True) if found else ((), ())
    return list(lengths), list(values)


def plot(results: dict[Point, dict], file: Path):
    """Plot time and added memory of a forward pass against the length, as png, if any was measured."""
    if not any(curve(results, *drawn, "seconds", 1.0)[0] for drawn in CURVES):
        return
    import matplotlib  # not earlier: the processes that measure start from this one, which must be small

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 4.2), layout="constrained")
    for panel, field, unit, title in (
        (panels[0], "seconds", 1.0, "Seconds of one forward pass"),
        (panels[1], "added_bytes", GB, "Memory that it adds, GB"),
    ):
        lengths = set()
        for drawn, (label, colour, marker) in CURVES.items():
            x, y = curve(results, *drawn, field, unit)
            lengths.update(x)
            panel.plot(x, y, color=colour, marker=marker, markersize=5, linewidth=1.8, label=label)
        panel.set(xscale="log", yscale="log", xlabel="tokens of the text")
        panel.set_title(title, fontsize=11, loc="left")
        panel.set_xticks(sorted(lengths), labels=[f"{length:,}" for length in sorted(lengths)], rotation=45)
        panel.minorticks_off()
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.grid(color="#dddddd", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=10)
    figure.savefig(file, dpi=200)
    pyplot.close(figure)
