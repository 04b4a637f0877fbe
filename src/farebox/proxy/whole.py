"""The ordinary answer: all of it is here and says in a known place what it cost. Read, settled and passed on at once.

Any other is `relay`'s, which can do all that this can. Where nothing has to be waited for, nothing is:
no meter that follows pieces, no task, one write.
"""

from __future__ import annotations

from farebox.accounting import Attempt
from farebox.config import Provider
from farebox.digits import digits
from farebox.ids import text_of
from farebox.meter import plain
from farebox.proxy.call import Call, Clock
from farebox.proxy.settle import Settler
from farebox.server import ClientGone, Reply
from farebox.upstream import Answer, Head


class Whole:
    """Passes on answers that came in one piece."""

    def __init__(self, settler: Settler, clock: Clock) -> None:
        self._settler = settler
        self._clock = clock

    def pass_on(self, call: Call, attempt: Attempt, provider: Provider, answer: Answer) -> Reply | None:
        """Settle `attempt` by `answer` and send that to the client; None, and nothing is done, where it is not so easy.

        The row is written before the answer goes out: a client that has it may go on as if it were.
        """
        head, body = answer.head, answer.whole
        if not body or head.status != 200 or attempt.kind.stream or call.gone:
            return None
        if head.content_encoding or not head.framed:
            return None
        read = plain.read(call.target.operation, body, provider.profile)
        if read is None or (call.claim is not None and call.claim.tells(call.facts, read[1])):
            return None
        attempt.last_byte = self._clock.monotonic()
        attempt.answer_bytes = len(body)
        if not self._settler.at_once(call, read[0], "whole", finished=attempt.last_byte):
            return None
        reply = call.reply = Reply(call.request)
        try:
            reply.send(head.status, head.reason, head_lines(call, head), body, length=head.length)
        except ClientGone:
            call.client_left()
            reply.cut()
        return reply


def head_lines(call: Call, head: Head) -> bytes:
    """The fields that the client gets: the provider's, and farebox's own."""
    lines, ticket = head.lines, call.ticket
    if call.snapshot.config.server.response_headers:
        lines += b"x-farebox-request-id: %b\r\n" % text_of(call.request_id)
        if ticket is not None and ticket.remaining_usd is not None:
            lines += b"x-farebox-budget-remaining-usd: %b\r\n" % digits(ticket.remaining_usd).encode()
    if ticket is not None and ticket.clamped is not None:
        # Not switchable: the request that went up is not the one that came.
        lines += b"x-farebox-clamped: max_tokens=%d\r\n" % ticket.clamped
    return lines
