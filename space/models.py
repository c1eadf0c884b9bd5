"""The models that the page offers: those that come with the repository, or the one of SENER_MODEL."""

import threading
from dataclasses import dataclass
from pathlib import Path

from extraction import Extractor
from limits import MAX_SECONDS, DemoError


ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Offer:
    """
    A model on offer.

    Args:
        source: a folder, or `user/name@revision` on the Hub.
        examples: texts for it, a title and a file of `examples/` each.
        groups: the labels as a reader would look for them, a name and labels each. Labels of no group, and labels that
            the model does not have, are allowed.
    """

    name: str
    title: str
    source: str
    examples: tuple[tuple[str, str], ...]
    groups: tuple[tuple[str, tuple[str, ...]], ...] = ()


PAPER, CONTRACT = ("A paper", "paper.txt"), ("A contract", "contract.txt")
ARTICLE = ("A biomedical article", "article.txt")
CLAUSES = (
    ("Parties and dates", (
        "Document Name", "Parties", "Agreement Date", "Effective Date", "Governing Law",
    )),
    ("Term and end", (
        "Expiration Date", "Renewal Term", "Notice Period to Terminate Renewal", "Termination for Convenience",
        "Post-Termination Services",
    )),
    ("Licence and ownership", (
        "License Grant", "Non-Transferable License", "Affiliate License-Licensor", "Affiliate License-Licensee",
        "Unlimited/All-You-Can-Eat-License", "Irrevocable or Perpetual License", "IP Ownership Assignment",
        "Joint IP Ownership", "Source Code Escrow",
    )),
    ("Liability and warranty", (
        "Cap on Liability", "Uncapped Liability", "Liquidated Damages", "Warranty Duration", "Insurance",
        "Covenant Not to Sue",
    )),
    ("Competition", (
        "Exclusivity", "Non-Compete", "Competitive Restriction Exception", "No-Solicit of Customers",
        "No-Solicit of Employees", "Non-Disparagement", "Most Favored Nation", "Rofr/Rofo/Rofn",
    )),
    ("Money and volume", (
        "Minimum Commitment", "Volume Restriction", "Revenue/Profit Sharing", "Price Restrictions",
    )),
    ("Control", (
        "Anti-Assignment", "Change of Control", "Audit Rights", "Third Party Beneficiary",
    )),
)  # fmt: skip


def on_offer(given: str | None) -> list[Offer]:
    """The models of the repository that are there; the given one alone, a folder or `user/name@revision`, if any."""
    if given:
        title = Path(given).name if Path(given).is_dir() else given  # where it lies is no visitor's business
        return [Offer("model", title, given, (PAPER, CONTRACT, ARTICLE))]
    checkpoints = ROOT / "checkpoints"
    offers = [
        Offer("papers", "Machine-learning papers", str(ROOT / "modeling_sener"), (PAPER,)),
        Offer("contracts", "Contracts", str(checkpoints / "contracts"), (CONTRACT,), CLAUSES),
        Offer("biomedical", "Biomedical articles", str(checkpoints / "biomedical"), (ARTICLE,)),
    ]
    return [offer for offer in offers if (Path(offer.source) / "config.json").is_file()]


class Models:
    """
    The models on offer, the first of which is the default and is loaded at once, so that what is wrong is said when
    the page starts. Each other one is loaded when it is first asked for. All are kept: memory is bounded as only what
    is on offer is loaded, each once, whatever is asked for.

    Args:
        max_seconds: that a text is computed for at most.

    Raises:
        DemoError: nothing on offer, or the first one cannot be loaded.
    """

    def __init__(self, offers: list[Offer], max_seconds: float = MAX_SECONDS):
        if not offers:
            raise DemoError(
                f"{ROOT}: there is no model. Name one: SENER_MODEL=FOLDER, or user/name@COMMIT on the Hub."
            )
        self.offers = {offer.name: offer for offer in offers}
        self.max_seconds = max_seconds
        self.default = offers[0].name
        self._loaded: dict[str, Extractor] = {}
        self._loading = threading.Lock()  # so that two who ask at once do not load it twice
        self.get(self.default)

    def get(self, name: str | None = None) -> Extractor:
        """
        The model of this name, or the default.

        Raises:
            DemoError: none of the names on offer, or it cannot be loaded.
        """
        name = self.default if name is None else name
        if not isinstance(name, str) or name not in self.offers:
            raise DemoError(f"model is {str(name)[:100]!r}: this page has {', '.join(self.offers)}.")
        with self._loading:
            if name not in self._loaded:
                self._loaded[name] = Extractor(self.offers[name].source, self.max_seconds)
            return self._loaded[name]

    def about(self, name: str | None = None) -> dict:
        """What the viewer is told of a model: its title, and the groups of its labels."""
        offer = self.offers[self.default if name is None else name]
        return {"model": offer.title, "groups": offer.groups}
