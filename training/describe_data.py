"""
Print what is in data files: texts, words, entities of each label, how they overlap, which span window holds them.

    python training/describe_data.py train.jsonl --span_window 128
"""

from training.common.start import run


# isort: split
import argparse

from modeling_sener import SenerConfig, SenerProcessor
from training.common.files import BUNDLED
from training.corpus.data import stream_files
from training.corpus.report import read_and_report


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="+", metavar="FILE", help="JSON Lines with gold entities, or DATASET:SPLIT")
    parser.add_argument("--span_window", type=int, default=SenerConfig().span_window,
                        help="count entities that this window cannot hold (default: %(default)s)")  # fmt: skip
    parser.add_argument("--backbone", help="count tokens of this encoder (default: the bundled checkpoint's)")
    options = parser.parse_args(arguments)
    if options.span_window < 1:
        parser.error(f"--span_window is {options.span_window}: expected an integer from 1")
    if options.backbone is None:
        processor = SenerProcessor.from_pretrained(BUNDLED)
    else:
        processor = SenerProcessor.from_backbone(options.backbone, SenerConfig())
    for source in options.data:
        documents = stream_files([source], None, "train", f"reading {source}")
        print("\n".join(read_and_report(source, documents, processor, None, options.span_window).lines()))


if __name__ == "__main__":
    run(main)
