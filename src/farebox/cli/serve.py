"""`farebox serve` and `farebox migrate`."""

from __future__ import annotations

import argparse
import asyncio
import gc
import re
import shlex
import signal
import sys

import structlog

from farebox import logs
from farebox.app import App
from farebox.cli.common import Commands, add_config, command, read_config, store_of, version
from farebox.config import Config, with_address


def add(commands: Commands) -> None:
    """Add both commands to the command line."""
    serve = commands.add_parser("serve", help="run the proxy")
    add_config(serve)
    serve.add_argument("--host", help="listen here instead of server.host")
    serve.add_argument("--port", type=int, help="listen here instead of server.port; 0 takes a free one")
    serve.set_defaults(run=run_serve)
    migrate = commands.add_parser("migrate", help="bring the database's schema up to date")
    add_config(migrate)
    migrate.set_defaults(run=run_migrate)


def run_serve(args: argparse.Namespace) -> int:
    """Serve until SIGTERM, SIGINT or SIGHUP."""
    config = with_address(read_config(args), args.host, args.port)
    logs.configure(config.log.level, config.log.format, config.secrets())
    logs.take_over_hooks()
    own = command(sys.argv[0])
    option = f" --config {shlex.quote(str(args.config))}" if args.config is not None else ""
    asyncio.run(_serve(config, own, option))
    return 0


def run_migrate(args: argparse.Namespace) -> int:
    """Apply the migrations that are missing."""

    async def go() -> None:
        async with store_of(args) as store:
            print(f"the schema is up to date ({await store.schema_version()})")

    asyncio.run(go())
    return 0


async def _serve(config: Config, own: str, option: str) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_log_loop_error)
    stop = asyncio.Event()
    app = App(config)
    # SIGHUP: the terminal is gone. Unhandled it would end farebox like a kill -9.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    await app.start()
    try:
        # What is alive now stays alive: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        print(banner(app, own, option), file=sys.stderr, flush=True)
        await stop.wait()
        structlog.get_logger().info("stopping", open_calls=app.proxy.in_flight)
    finally:
        await app.close()
        structlog.get_logger().info("stopped")


def _log_loop_error(_: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
    exc = context.get("exception")
    facts = logs.exception_facts(exc) if isinstance(exc, BaseException) else {}
    # asyncio goes on to show the callback with its arguments, which may be a piece of a body.
    what = re.split(r"[(<{'\"]", str(context.get("message", "")), maxsplit=1)[0]
    structlog.get_logger().error("event loop error", what=what[:200], **facts)


def banner(app: App, own: str, option: str) -> str:
    """What a newcomer needs next: where it listens, the first key, and something to try.

    `own` is how farebox is called here, `option` what makes another command read the same config.
    """
    base = app.base_url
    model = "farebox-demo" if app.demo else "MODEL"
    key = app.first_key or "$FAREBOX_KEY"
    lines = [
        "",
        f"farebox {version()} is up.",
        "",
        f"  base_url     {base}/v1   (Anthropic's SDK: {base})",
    ]
    if app.first_key:
        lines.append(f"  first key    {app.first_key}   (shown this once; it is stored as a hash)")
    elif app.config.auth.mode == "virtual":
        lines.append(f"  a new key    export FAREBOX_KEY=$({own} keys create NAME{option})")
    if app.admin_token_path is not None:
        lines.append(f"  admin token  in {app.admin_token_path}")
    if app.demo:
        lines.append(f"  provider     demo: an echo, no model. For others: {own} init")
    auth = f" -H 'Authorization: Bearer {key}'" if app.config.auth.mode != "open" else ""
    auth = auth.replace("'", '"') if not app.first_key else auth
    lines += [
        "",
        "Try it:",
        "",
        f"  curl -N {base}/v1/chat/completions{auth} -H 'Content-Type: application/json' \\",
        f'    -d \'{{"model": "{model}", "stream": true, "messages": [{{"role": "user", "content": "Hello!"}}]}}\'',
        "",
        f"Then see its row:  {own} usage{option}",
        "",
    ]
    return "\n".join(lines)
