"""How much of a call each of its budgets holds before it is sent. Pure: values in, values out.

A `strict` budget holds the bound: the most the call can use, at the dearest price it may be served at.
It admits only calls that have one, and is never overspent at farebox's price book.

An `expected` budget holds for a stream its input and the output that its key and model usually have
(`learned`), and more as the stream goes on, so that long limits that nobody reaches do not fill it. A
call that does not stream can neither ask for more nor be cut: it holds the bound here too. What that
costs in certainty, exactly: with `limit` the budget's and every hold admitted only while
spent + reserved + amount <= limit,

    spent <= limit + sum over calls of max(0, cost - held)

and for one stream that is cut when an extension is denied

    cost - held <= r_out x (max(0, 3d - 1) x h  +  d x c  +  t)  +  r_in x max(0, i - i_held)

    r_out, r_in  its dearest rates per token of output and input
    h            tokens of output held when it was denied
    d            tokens in a byte of its text: 1/4 in English, less than 1/3 in most languages (then the term is 0),
                 1 at most
    c            bytes of the text that came with the last chunk, 64 KiB at most, and 3 for rounding; seen from the
                 provider also what it wrote until it noticed that farebox had hung up
    t            tokens charged as output that are not sent as text: hidden reasoning
    i, i_held    input, and what was held of it: the same, or less, but where the budget was so short that the input
                 of another maker's model was counted by OpenAI's tokenizer and half as much again was held

and never more than its bound less its hold; all of it at the tier that was asked for, a dearer one that the
provider chose comes on top. So a stream of plain text overshoots by its last chunk, a
reasoning model by what it thinks unseen, and only those streams do that are open when the money ends.
A call without a bound (pictures, hosted tools, stored context) holds its model's allowance and overshoots
by what it costs beyond; one that `on_extend_denied: overrun` lets run on, by the rest of its bound.
A provider that writes past the limit a request gave it overruns budgets of either admission by what it
charges for that, which is recorded.
"""

from farebox.admission.amounts import (
    Applies,
    Held,
    Priced,
    Refused,
    affordable,
    allowance_of,
    amounts,
    total_of,
)
from farebox.admission.learned import Learned

__all__ = [
    "Applies",
    "Held",
    "Learned",
    "Priced",
    "Refused",
    "affordable",
    "allowance_of",
    "amounts",
    "total_of",
]
