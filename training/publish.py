"""
Publish a checkpoint on the Hugging Face Hub, and the web demo as a Space.

    python training/publish.py --model my-model --repo user/name --dry-run
    python training/publish.py --model my-model --repo user/name --scores report.json \\
        --license apache-2.0 --language en --dataset user/data --base_model microsoft/deberta-v3-large
    python training/publish.py --model my-model --repo user/name --space user/demo

Writes the complete repository (code, weights, tokenizer, config and model card) to `published/user/name`, checks that
it loads in an isolated interpreter (training/publishing/), and uploads it in one commit; `--dry-run` skips the upload.
The card is made from the scores (`training/score.py --output report.json`); without them the folder's own README.md is
the card. To edit a card, make a dry run, edit it, and publish `--model published/user/name`. The upload needs a token
with write access: `hf auth login`, or the variable HF_TOKEN.
"""

from training.common.start import run


# isort: split
import argparse
import shutil
import sys
from fnmatch import fnmatch
from pathlib import Path

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, SpaceCard, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from training.common.cli import first_line
from training.common.files import nearest, writing
from training.fitting.checkpoint import load_checkpoint, save_stored
from training.publishing.card import build_card, read_scores
from training.publishing.check_published import check_published_folder


OUTPUT = Path("published")
SPACE = Path(__file__).parent.parent / "space"
REPLACED = ("*.py", "*.json", "*.safetensors")  # removed from the Hub unless they are written again
CARD_OPTIONS = ("license", "language", "dataset", "base_model")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, metavar="FOLDER", help="the checkpoint")
    parser.add_argument("--repo", required=True, metavar="USER/NAME", help="the model's repository on the Hub")
    parser.add_argument("--space", metavar="USER/NAME", help="also publish the demo with this model, as this Space")
    parser.add_argument("--dry-run", action="store_true", help="write and check the folder, upload nothing")
    card = parser.add_argument_group("model card")
    card.add_argument("--scores", metavar="FILE", help="report of training/score.py, from which a card is made")
    card.add_argument("--license", help="license of the weights, as the Hub names it: apache-2.0, cc-by-4.0, ...")
    card.add_argument("--language", nargs="+", metavar="CODE", help="languages of the texts: en, de, ...")
    card.add_argument("--dataset", nargs="+", metavar="NAME", help="training data sets, first the scored one")
    card.add_argument("--base_model", metavar="NAME", help="the encoder that training began with")
    return parser.parse_args(arguments)


def check_arguments(options: argparse.Namespace) -> None:
    """Raise `ValueError` for faults that would otherwise appear late."""
    for option in ("repo", "space"):
        name = getattr(options, option)
        if name is not None:
            try:
                validate_repo_id(name)
            except HFValidationError as error:
                raise ValueError(f"--{option} {name!r}: {first_line(error)}") from error
            if name.count("/") != 1:
                raise ValueError(f"--{option} {name!r}: expected USER/NAME")
    if not Path(options.model).is_dir():
        raise ValueError(f"--model {options.model}: no such folder{nearest(options.model)}")
    given = [name for name in CARD_OPTIONS if getattr(options, name) is not None]
    missing = [name for name in CARD_OPTIONS if name not in given]
    if options.scores is not None and missing:
        raise ValueError(f"--scores makes a model card, which needs --{', --'.join(missing)} as well")
    if options.scores is None and given:
        raise ValueError(f"--{given[0]} is for the card that --scores makes: give that, too")
    if options.scores is None and not (Path(options.model) / "README.md").is_file():
        raise ValueError(
            f"{options.model}: no README.md: give --scores REPORT.json (training/score.py --output), of which a model "
            "card is made, or write one"
        )
    if not options.dry_run and get_token() is None:
        raise ValueError("no token for the Hub: `hf auth login`, or set HF_TOKEN (--dry-run needs none)")


def write_repository(options: argparse.Namespace) -> Path:
    """
    Write the repository to `published/USER/NAME`, and replace an older one.

    Raises:
        ValueError: the folder is no SeNER checkpoint, or the scores are of another model.
    """
    model, processor = load_checkpoint(options.model)
    if options.scores is None:
        card = (Path(options.model) / "README.md").read_text(encoding="utf-8")
    else:
        scores = read_scores(options.scores, model.config)
        card = str(build_card(options.repo, model, scores, options.license, options.language, options.dataset,
                              options.base_model))  # fmt: skip
    folder = OUTPUT / options.repo
    aside = folder.with_name(f".{folder.name}.new")  # the model itself may lie in `folder`
    shutil.rmtree(aside, ignore_errors=True)
    license = Path(options.model) / "LICENSE"
    with writing(folder):
        save_stored(model, Path(options.model), aside)
        processor.save_pretrained(aside)
        (aside / "README.md").write_text(card, encoding="utf-8")
        if license.is_file():
            shutil.copy(license, aside)
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    return folder


def build_space(space: str, repo: str) -> Path:
    """Write the demo to `published/spaces/USER/NAME`, with the model in its header; replaces an older one."""
    folder = OUTPUT / "spaces" / space
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(SPACE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    card = SpaceCard.load(folder / "README.md")
    card.data["models"] = [repo]
    card.save(folder / "README.md")
    return folder


def upload(api: HfApi, folder: Path, repo: str, repo_type: str, variables: dict[str, str] | None = None) -> str:
    """
    Create the repository if it is missing, and upload `folder` in one commit; `variables` are those of a Space.

    `HfApi.upload_folder` would split a large folder into several commits, between which the repository would have old
    code with new weights.

    Returns:
        The id of the commit.

    Raises:
        ValueError: the Hub refused, or could not be reached.
    """
    adds = [
        CommitOperationAdd(file.relative_to(folder).as_posix(), file)
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    ]
    try:
        sdk = {"space_sdk": "gradio"} if repo_type == "space" else {}
        api.create_repo(repo, repo_type=repo_type, exist_ok=True, **sdk)
        for name, value in (variables or {}).items():
            api.add_space_variable(repo, name, value)
        written = {add.path_in_repo for add in adds}
        old = [name for name in api.list_repo_files(repo, repo_type=repo_type) if name not in written]
        deletes = [CommitOperationDelete(name) for name in old if any(fnmatch(name, each) for each in REPLACED)]
        commit = api.create_commit(repo, [*deletes, *adds], commit_message="Publish", repo_type=repo_type)
    except (HfHubHTTPError, httpx2.HTTPError, RuntimeError) as error:
        cause = error.__cause__ or error
        first = first_line(cause)
        raise ValueError(f"{repo}: the upload to {api.endpoint} failed: {first}") from error
    return commit.oid


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    check_arguments(options)
    folder = write_repository(options)
    result = check_published_folder(folder)
    if result.failures:
        raise ValueError(f"{folder}: not fit to be published:\n  " + "\n  ".join(result.failures))
    print(f"{folder}: {len(result.passed)} checks passed", file=sys.stderr)
    space = build_space(options.space, options.repo) if options.space else None
    if options.dry_run:
        print(f"{folder}" + (f"\n{space}" if space else ""))
        return
    api = HfApi()
    commit = upload(api, folder, options.repo, "model")
    print(f"{api.endpoint}/{options.repo}/tree/{commit}")
    if space is not None:
        upload(api, space, options.space, "space", {"SENER_MODEL": f"{options.repo}@{commit}"})
        print(f"{api.endpoint}/spaces/{options.space}")


if __name__ == "__main__":
    run(main)
