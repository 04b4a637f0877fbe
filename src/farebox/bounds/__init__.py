"""How much a request can use before it is sent, and how to make it use less. Pure.

`bound` says the most, in tokens, or why nobody can (`contents`: what is read, `growth`: what normalising
adds, `outputs`: what may be written, `longest`: where nothing limits that). `clamp` lowers the limit of
what is written. What it costs is `pricing`'s business, how much of it is held `admission`'s.
"""

from farebox.bounds.bound import Bound, bound_of, kind_of_model, refine
from farebox.bounds.clamp import OUTPUT_TOKENS_MIN, clamp
from farebox.bounds.longest import longest_output
from farebox.bounds.ordinary import Ordinary
from farebox.bounds.ordinary import read as read_ordinary
from farebox.bounds.outputs import TOKENS_MAX

__all__ = [
    "OUTPUT_TOKENS_MIN",
    "TOKENS_MAX",
    "Bound",
    "Ordinary",
    "bound_of",
    "clamp",
    "kind_of_model",
    "longest_output",
    "read_ordinary",
    "refine",
]
