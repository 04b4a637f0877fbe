"""What calls cost: dated price lists, and the arithmetic from usage to US dollars. Pure.

The way of a price: an entry (`entry`) comes from the snapshot (`shipped`, made by `genai`), from
Postgres, or from a provider's config (`configured`). A `PriceBook` finds the entry of a model
(`matching`, `publishers`), `tables` picks the period, the variant and the context tier that hold,
`buckets` splits the usage, `amounts` multiplies. `Pricer` does all of it for one event; what a call within
a bound may cost at most is in `most`.

Storing entries, refreshing them and correcting rows is left to others.
"""

from farebox.pricing.book import PriceBook
from farebox.pricing.configured import config_entries
from farebox.pricing.entry import Match, Period, Price, Rates, Step, Variant, beginning, digest
from farebox.pricing.pricer import Costing, Pricer, Quote, Standing
from farebox.pricing.publishers import NONE, book_of, unknown_books
from farebox.pricing.shipped import Snapshot, shipped

__all__ = [
    "NONE",
    "Costing",
    "Match",
    "Period",
    "Price",
    "PriceBook",
    "Pricer",
    "Quote",
    "Rates",
    "Snapshot",
    "Standing",
    "Step",
    "Variant",
    "beginning",
    "book_of",
    "config_entries",
    "digest",
    "shipped",
    "unknown_books",
]
