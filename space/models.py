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
        groups: groups of labels for the page's list, a name and labels each. A label may be in no group; labels that
            the model does not have are left out.
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
    """
    The models that the page offers.

    Args:
        given: a folder or `user/name@revision`: offer this model alone. Without it, all bundled models that are there.
    """
    if given:
        title = Path(given).name if Path(given).is_dir() else given  # visitors must not see paths of this machine
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
    The models on offer. The first one is the default. It is loaded at once, so that a fault shows when the page
    starts; each other one is loaded when it is first asked for. All are kept. Memory is bounded: only models on offer
    are loaded, each of them once.

    Args:
        max_seconds: the longest computation of a text.

    Raises:
        DemoError: no model is on offer, or the first one cannot be loaded.
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
        The model of this name, or the default one without a name.

        Raises:
            DemoError: no model of this name is on offer, or it cannot be loaded.
        """
        name = self.default if name is None else name
        if not isinstance(name, str) or name not in self.offers:
            raise DemoError(f"model is {str(name)[:100]!r}: this page has {', '.join(self.offers)}.")
        with self._loading:
            if name not in self._loaded:
                self._loaded[name] = Extractor(self.offers[name].source, self.max_seconds)
            return self._loaded[name]

    def about(self, name: str | None = None) -> dict:
        """The fields of a model that the viewer shows: its title, and the groups of its labels."""
        offer = self.offers[self.default if name is None else name]
        return {"model": offer.title, "groups": offer.groups}
