"""
Check that checkpoints give the same results in all supported pairs of torch and transformers: `make versions`.

    python tests/tools/version_matrix.py            # half an hour and 30 GB of environments in outputs/versions/
    python tests/tools/version_matrix.py --record   # new golden files, after a new bundled checkpoint

Each pair has an environment with torch, transformers and Accelerate, in which training/publishing/check_published.py
loads the bundled checkpoint (WordPiece) and a tiny one like DeBERTa-v3 (SentencePiece), and shares their tokenizers
between threads. The oldest pair has the oldest tokenizers that its transformers takes. Prints a table.
"""

import argparse
import sys
import tempfile
from pathlib import Path


ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.environments import make_environment  # noqa: E402
from support.golden_checkpoints import CHECKPOINTS, golden, write_golden  # noqa: E402
from tqdm.auto import tqdm  # noqa: E402

from training.publishing.check_published import check_published_folder, record  # noqa: E402


# The ends of the version ranges in pyproject.toml, and some versions between. transformers 5.0 takes tokenizers 0.22.0
# as well, but tokenizers 0.22.0 takes no huggingface-hub that transformers 5.0 takes.
PAIRS = [
    ("2.13.0", "5.24.0", None),
    ("2.13.0", "5.18.0", None),
    ("2.13.0", "5.12.1", None),
    ("2.13.0", "5.6.2", None),
    ("2.13.0", "5.0.0", None),
    ("2.7.0", "5.24.0", None),
    ("2.7.0", "5.0.0", "0.22.1"),
]
COLUMNS = "| torch | transformers | tokenizers | checkpoint | checks passed | largest float32 difference | failures |"


def requirements(torch: str, transformers: str, tokenizers: str | None) -> list[str]:
    """What pip installs for a pair; `None` is the newest tokenizers that transformers takes."""
    lines = [f"torch=={torch}", f"transformers=={transformers}", "accelerate", "numpy"]
    return lines if tokenizers is None else [*lines, f"tokenizers=={tokenizers}"]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write new golden files to tests/data/golden/ instead")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folders = {}
        for kind, make in CHECKPOINTS.items():
            (Path(temporary) / kind).mkdir()
            folders[kind] = make(Path(temporary) / kind)
        recorded = {kind: record(folder) for kind, folder in folders.items()}
        if options.record:
            for kind in CHECKPOINTS:
                write_golden(kind, recorded[kind])
            return 0
        # Compare with the golden files, not with the results of this environment's versions.
        recorded = {kind: {**recorded[kind], **golden(kind)} for kind in CHECKPOINTS}
        return print_matrix(folders, recorded)


def print_matrix(folders: dict[str, Path], recorded: dict[str, dict]) -> int:
    """Print a row for each pair and checkpoint; returns 1 if a check failed, else 0."""
    failed = 0
    print(COLUMNS + "\n" + "|---" * COLUMNS.count(" | ") + "|---|")
    for torch, transformers, tokenizers in tqdm(PAIRS, unit="pair"):
        place = ROOT / "outputs" / "versions" / f"torch-{torch}-transformers-{transformers}"
        python = make_environment(place, requirements(torch, transformers, tokenizers))
        for kind, folder in folders.items():
            result = check_published_folder(folder, python=python, recorded=recorded[kind])
            exact = max(worst for name, worst in result.passed.items() if "16" not in name)
            failed |= bool(result.failures)
            cells = [
                torch,
                transformers,
                tokenizers or "newest",
                kind,
                len(result.passed),
                f"{exact:.1g}",
                "; ".join(result.failures) or "none",
            ]
            tqdm.write("| " + " | ".join(map(str, cells)) + " |", file=sys.stdout)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
