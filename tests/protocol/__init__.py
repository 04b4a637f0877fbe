"""The budget protocol as a model that is searched whole: every order of every step, no sampling.

What is modelled is the protocol, not the SQL: each database function is one atomic step (`rules.py`), each process
takes steps of its own between them (`steps.py`), and faults are steps too: a reply that is lost, a request that
arrives after its sender gave up on it, a process that is killed or only paused, a journal that is replayed, an
outage. `worlds.py` says how small each world is, `search.py` walks all its states breadth first, so that the first
state that breaks an invariant (`invariants.py`) comes with a shortest trace to it. Floats, which let calls in without
the database, are the same once more: `floats.py`, `float_steps.py`, `float_worlds.py`, `float_mutants.py`.

A model that can't fail proves nothing: `mutants.py` takes one rule away at a time, and each of these must be caught by
the invariant it is said to break. `locks.py` looks at the one thing an atomic step hides, the order in which the
functions take their row locks. That the SQL does what this model says is for the tests of the store.
"""
