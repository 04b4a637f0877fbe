"""The durable queue between a request and Postgres.

`ledger` is what the data plane calls, over the local journal; `delivery` gets batches of it into
the database, whatever that takes; `journals` opens the journals.
"""

from farebox.ledger.delivery import Delivery
from farebox.ledger.journals import opener
from farebox.ledger.ledger import Backlog, Ledger

__all__ = ["Backlog", "Delivery", "Ledger", "opener"]
