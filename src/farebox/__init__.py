"""farebox: a reverse proxy that meters OpenAI-compatible traffic.

Theory of operation. A client's request is understood (`paths`, `request`), its caller known (`keys`), a
provider chosen (`routing`), what the attempt may cost held of the budgets that count it (`budgets`) and
the attempt written to a local journal (`ledger`) before a byte of it goes up (`upstream`). The answer's
bytes go down as they came (`proxy`, `server`); a meter reads along without ever touching them (`meter`,
over `sse` and `dialects`), but for one frame, the usage frame that farebox itself caused with `splice`,
which is taken out again. Whatever ends the attempt, exactly one `records.UsageEvent` says what it used
(`accounting`, with `estimator` and `tokens` where the provider said nothing) and what it cost (`pricing`,
by the book that `pricebook` has in force); that of an ordinary call is written in a shorter way (`rows`, over
`kinds`), in the same words. It is in the journal before the client has its last bytes, counted by `metrics`
(`recording` sees to both), and carried to Postgres (`store`) by a drain, keyed by an id minted here, so that
repeating is harmless and a crash loses nothing. `GET /v1/models` alone is answered from what is known
(`models`).

The floors, upper ones import lower ones only (checked in CI):

    cli            commands
    worker         one process of several; supervisor: the one above them
    app            composition root: config -> objects -> a listening server; start, reload, stop
    reload, source, generations
                   a new config: when it is read, what was read, and the clients made from it
                   (database: the embedded Postgres or the one the config names; foundation: what
                   there is once, however many processes serve; accepting: one port for several)
    proxy, admin   data plane and control plane; demo: the built-in provider; recording: where events go
    models         which models there are: asked of providers, kept, merged as the routes send calls
    pricebook      the prices in force, seeded and watched; repricing: what was costed wrong, corrected
    budgets        what counts a call, held for it before it goes out; the counters are Postgres's, and the
                   row that says what it cost settles the hold
    objects        whose the files, responses and the like are that providers store
    keys, ledger (over journal), upstream, store, embedded_postgres, server, estimator,
    metrics        one outside thing each
    following      looks now and then at what other processes change
    logs           what may be said of anything that happens
    rows, accounting, payload, sizing, admission, bounds, kinds, holds, pricing, meter, routing, splice, tokens, heads,
    request, prompt, credentials, sse, codings, jsontext, csvtext, paths, config, dialects, errors, digits, ids, records
                   pure: values in, values out; no I/O, no clock

Postgres is the truth (keys, rows, prices, budgets). The journal holds what is not there yet. Memory holds caches
and open calls. The config is one immutable snapshot, swapped whole; a call keeps the one it began with.
"""
