"""Budgets on this side of the database: what counts a call, the hold it goes out with, and what is given back.

    applying      which budgets count a call, and whose counter of each (pure)
    definitions   the budgets there are, in memory; the config's are put into Postgres
    service       `Budgets`: one process's budgets, as the proxy meets them
    reserving     reserve and extend, in time or not at all, over
    flights       calls of many in one statement
    waiting       the fair, bounded wait for open holds to be given back
    releases      giving back, in the background, until it succeeds
    owner         registration, heartbeat, sweep and purge
    opening       all of it from a config, and its end
    lives         what a crashed process held, found by the next life of its journal
    link          whether the database answers
    alerts        thresholds: found, told once a window; webhook: one signed POST

Every counter is in Postgres and moves there alone. Nothing is counted here, so any number of processes are one.
"""

from farebox.budgets.applying import Applied
from farebox.budgets.definitions import fields_of
from farebox.budgets.lives import Lives, boot_id
from farebox.budgets.opening import CONNECTIONS, opened
from farebox.budgets.service import Budgets, Drain, Settings

__all__ = ["CONNECTIONS", "Applied", "Budgets", "Drain", "Lives", "Settings", "boot_id", "fields_of", "opened"]
