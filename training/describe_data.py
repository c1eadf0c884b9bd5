"""
Print a report on data files: texts, words, entities of each label, their overlaps, and the span window that they need.

    python training/describe_data.py train.jsonl --span_window 128
"""

from training.common.start import run


# isort: split
import argparse

from modeling_sener import SenerConfig, SenerProcessor
from training.common.models import is_checkpoint, resolve
from training.corpus.data import stream_files
from training.corpus.report import read_and_report


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="+", metavar="FILE", help="JSON Lines with gold entities, or DATASET:SPLIT")
    parser.add_argument("--span_window", type=int, default=SenerConfig().span_window,
                        help="count entities that this window cannot hold (default: %(default)s)")  # fmt: skip
    parser.add_argument("--backbone", help="count tokens of this encoder or checkpoint (default: the bundled one)")
    parser.add_argument("--word_pattern", help="regular expression of a word (default: the checkpoint's)")
    options = parser.parse_args(arguments)
    if options.span_window < 1:
        parser.error(f"--span_window is {options.span_window}: expected an integer from 1")
    name = resolve(options.backbone or "papers")
    if is_checkpoint(name):
        processor = SenerProcessor.from_pretrained(name)
    else:
        processor = SenerProcessor.from_backbone(name, SenerConfig())
    if options.word_pattern is not None:
        processor = SenerProcessor(processor.tokenizer, processor.config, options.word_pattern)
    for source in options.data:
        documents = stream_files([source], None, "train", f"reading {source}")
        print("\n".join(read_and_report(source, documents, processor, None, options.span_window).lines()))


if __name__ == "__main__":
    run(main)
