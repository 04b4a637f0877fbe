"""A process that journals calls as fast as it can until it is killed.

    python journal_writer.py FOLDER FIRST_NUMBER

After each thing that is done it writes a line to standard output, straight to the pipe: `b N` begun,
`e N` ended, `d N ...` drained, and about to be committed. What was said was done before the kill.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

from farebox.journal import Journal


def main(folder: Path, number: int) -> None:
    chance = random.Random(number)
    journal = Journal.open(folder, segment_bytes=64 * 1024, max_bytes=64 * 1024 * 1024, fsync_ms=1)
    for id, _, _ in journal.orphans():
        journal.end(id, b"cut %d" % int.from_bytes(id, "big"))
        os.write(1, b"e %d\n" % int.from_bytes(id, "big"))
    under_way: list[int] = []
    while True:
        number += 1
        journal.begin(number.to_bytes(16, "big"), b"begin %d " % number + b"x" * chance.randrange(1500))
        os.write(1, b"b %d\n" % number)
        under_way.append(number)
        while len(under_way) > chance.randrange(1, 40):
            ending = under_way.pop(chance.randrange(len(under_way)))
            journal.end(ending.to_bytes(16, "big"), b"end %d " % ending + b"y" * chance.randrange(3000))
            os.write(1, b"e %d\n" % ending)
        if chance.random() < 0.05:
            batch = journal.next_batch(chance.randrange(1, 50))
            os.write(1, b"d %s\n" % b" ".join(payload.split()[1] for payload in batch))
            journal.commit()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
