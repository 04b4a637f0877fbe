"""farebox: a reverse proxy that meters OpenAI-compatible traffic.

Theory of operation. A client's request is understood (`paths`, `request`), its caller known
(`keys`), a provider chosen (`routing`) and the attempt written to a local journal (`ledger`) before
a byte of it goes up (`upstream`). The answer's bytes go down as they came (`proxy`, `server`); a
meter reads along without ever touching them (`meter`, over `sse` and `dialects`), but for one
frame, the usage frame that farebox itself caused with `splice`, which is taken out again. Whatever
ends the attempt, exactly one `records.UsageEvent` says what it used (`accounting`, with `estimator`
and `tokens` where the provider said nothing). It is in the journal before the client has its last
bytes, and a drain carries it to Postgres (`store`), keyed by an id minted here, so that repeating
is harmless and a crash loses nothing.

The floors, upper ones import lower ones only (checked in CI):

    cli            commands
    app            composition root: config -> objects -> a listening server; start and stop
                   (database: the embedded Postgres or the one the config names)
    proxy, admin   data plane and control plane; demo: the built-in provider
    keys, ledger (over journal), upstream, store, embedded_postgres, server, estimator
                   one outside thing each
    accounting, payload, meter, routing, splice, tokens, request, prompt, sse, codings, jsontext,
    paths, config, dialects, errors, ids, records
                   pure: values in, values out; no I/O, no clock

Postgres is the truth (keys, rows). The journal holds what is not there yet. Memory holds caches
and open calls. The config is one immutable snapshot.
"""
