"""`farebox serve` and `farebox migrate`."""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import signal
import sys
from collections.abc import Callable

import structlog

from farebox import logs
from farebox.app import App
from farebox.cli.common import DEFAULT_CONFIG, Commands, add_config, command, store_of, version
from farebox.config import Config, ConfigError
from farebox.reload import Voice, Watch
from farebox.source import ConfigFile, Source
from farebox.supervisor import Supervisor
from farebox.worker import log_loop_error, settle_memory


def add(commands: Commands) -> None:
    """Add both commands to the command line."""
    serve = commands.add_parser(
        "serve",
        help="run the proxy",
        description="Run the proxy until SIGTERM or SIGINT, which finish what is under way. A change of the config "
        "file is followed; SIGHUP has it read at once (but a terminal that is closed ends what runs in it).",
    )
    add_config(serve)
    serve.add_argument("--host", help="listen here instead of server.host")
    serve.add_argument("--port", type=int, help="listen here instead of server.port; 0 takes a free one")
    serve.add_argument("--workers", type=int, metavar="N", help="serve by so many processes instead of server.workers")
    serve.set_defaults(run=run_serve)
    migrate = commands.add_parser("migrate", help="bring the database's schema up to date")
    add_config(migrate)
    migrate.set_defaults(run=run_migrate)


def run_serve(args: argparse.Namespace) -> int:
    """Serve until SIGTERM, SIGINT or the end of the terminal. SIGHUP has the config read again, like a change of it."""
    file = ConfigFile(
        args.config or DEFAULT_CONFIG,
        env=os.environ,
        optional=args.config is None,
        host=args.host,
        port=args.port,
        workers=args.workers,
    )
    reading = file.read()
    config = reading.config
    if isinstance(config, ConfigError):
        raise config
    voice = Voice()
    voice.follow(config)
    logs.take_over_hooks()
    serving: App | Supervisor
    if config.server.workers > 1:
        serving = Supervisor(config, reading.source, address=(args.host, args.port, args.workers))
    else:
        serving = App(config)
    own = command(sys.argv[0])
    option = f" --config {shlex.quote(str(args.config))}" if args.config is not None else ""
    asyncio.run(_serve(serving, voice, file, reading.source, own, option))
    return 0


def run_migrate(args: argparse.Namespace) -> int:
    """Apply the migrations that are missing."""

    async def go() -> None:
        async with store_of(args) as store:
            print(f"the schema is up to date ({await store.schema_version()})")

    asyncio.run(go())
    return 0


async def _serve(
    serving: App | Supervisor, voice: Voice, file: ConfigFile, source: Source, own: str, option: str
) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(log_loop_error)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    watch = _watch(serving, voice, file, source)
    loop.add_signal_handler(signal.SIGHUP, _hangup(watch.ask, stop.set))
    await serving.start()
    try:
        settle_memory()
        print(banner(serving, own, option), file=sys.stderr, flush=True)
        watch.start()
        await stop.wait()
        structlog.get_logger().info("stopping", **_open(serving))
    finally:
        await watch.close()
        await serving.close()
        structlog.get_logger().info("stopped")


def _watch(serving: App | Supervisor, voice: Voice, file: ConfigFile, source: Source) -> Watch:
    async def apply(config: Config, source: Source) -> tuple[str, ...]:
        voice.know(config)
        voice.follow(serving.config)
        if isinstance(serving, Supervisor):
            waiting = await serving.reload(config, source)
        else:
            waiting = await serving.reload(config)
        voice.follow(serving.config)
        return waiting

    return Watch(
        file,
        source,
        apply=apply,
        done=serving.reloaded,
        poll_s=lambda: serving.config.server.reload_poll_s,
    )


def _hangup(reload: Callable[[], None], stop: Callable[[], None]) -> Callable[[], None]:
    """What SIGHUP does: `reload`, but `stop` when it came because the terminal that farebox was started in is gone.

    Whoever closes a terminal expects what runs in it to end. A terminal that is gone is none any more.
    """
    terminals = [number for number in range(3) if _is_terminal(number)]

    def act() -> None:
        if all(map(_is_terminal, terminals)):
            reload()
        else:
            structlog.get_logger().info("the terminal is gone")
            stop()

    return act


def _is_terminal(number: int) -> bool:
    try:
        return os.isatty(number)
    except OSError:
        return False


def _open(serving: App | Supervisor) -> dict[str, int]:
    if isinstance(serving, Supervisor):
        return {"workers": serving.config.server.workers}
    return {"open_calls": serving.proxy.in_flight}


def banner(serving: App | Supervisor, own: str, option: str) -> str:
    """What a newcomer needs next: where it listens, the first key, and something to try.

    `own` is how farebox is called here, `option` what makes another command read the same config.
    """
    base = serving.base_url
    model = "farebox-demo" if serving.demo else "MODEL"
    key = serving.first_key or "$FAREBOX_KEY"
    lines = [
        "",
        f"farebox {version()} is up.",
        "",
        f"  base_url     {base}/v1   (Anthropic's SDK: {base})",
    ]
    if serving.first_key:
        lines.append(f"  first key    {serving.first_key}   (shown this once; it is stored as a hash)")
    elif serving.config.auth.mode == "virtual":
        lines.append(f"  a new key    export FAREBOX_KEY=$({own} keys create NAME{option})")
    if serving.admin_token_path is not None:
        lines.append(f"  admin token  in {serving.admin_token_path}")
    if serving.demo:
        lines.append(f"  provider     demo: an echo, no model. For others: {own} init")
    auth = f" -H 'Authorization: Bearer {key}'" if serving.config.auth.mode != "open" else ""
    auth = auth.replace("'", '"') if not serving.first_key else auth
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
