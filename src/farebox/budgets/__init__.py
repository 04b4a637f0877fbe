"""Budgets on this side of the database: what counts a call, the hold it goes out with, and what is given back.

    applying      which budgets count a call, and whose counter of each (pure)
    definitions   the budgets there are, in memory; the config's are put into Postgres
    service       `Budgets`: one process's budgets, as the proxy meets them
    reserving     reserve and extend, in time or not at all, over
    flights       calls of many in one statement
    floats        what this process holds ahead of its calls, in memory (pure)
    floating      floats taken, filled up, and given back in time
    waiting       the fair, bounded wait for open holds to be given back
    releases      giving back, in the background, until it succeeds
    owner         registration, heartbeat, sweep and purge
    opening       all of it from a config, and its end
    lives         what a crashed process held, found by the next life of its journal
    link          whether the database answers
    alerts        thresholds: found, told once a window; webhook: one signed POST

Every counter is in Postgres and moves there alone. Nothing is counted here but what the database has put into a float,
so any number of processes are one.

A float is an amount held ahead on a call's counters, so that busy keys, far from their limits, are admitted without a
round trip. It takes a sixteenth of what is left at most. Unused for a second it goes back, and at once where it would
keep anybody out: a call is denied only when no float with idle money is on the counter that denies it, or when its
owner does not answer for a second. It never lets more pass than was reserved. What a crashed process held ahead goes
back when its journal has been read to the end, by the next farebox on that machine; where nobody can read it, it is
charged a day later, since nobody knows what was sent.
"""

from farebox.budgets.applying import Applied
from farebox.budgets.definitions import fields_of
from farebox.budgets.lives import Lives, boot_id
from farebox.budgets.opening import CONNECTIONS, opened
from farebox.budgets.service import Budgets, Drain, Settings

__all__ = ["CONNECTIONS", "Applied", "Budgets", "Drain", "Lives", "Settings", "boot_id", "fields_of", "opened"]
