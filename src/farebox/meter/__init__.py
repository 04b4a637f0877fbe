"""Reads what an answer costs while its bytes pass: sans-I/O, one `Meter` for one answer.

`meter` decides what kind of body it is; `stream` follows event streams, `body` JSON documents.
What the bytes mean is known to the wires, one for each API family: `chat`, `responses`,
`messages`, `embeddings`. They write into `reading.Notes`, which `dialects` puts on one scale at
the end. `withhold` takes out the frame that farebox itself asked for, and `terminals` writes the last
ones of a stream that farebox ends before its time.

Nothing here asks a clock, a socket or the journal, and nothing here decides how an attempt ended:
that is `accounting`.
"""

from farebox.meter.meter import Meter
from farebox.meter.reading import Reading
from farebox.meter.template import Template

__all__ = ["Meter", "Reading", "Template"]
