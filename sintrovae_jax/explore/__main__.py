"""Explores a model in the browser.

    python -m sintrovae_jax.explore MODEL [--step STEP] [--host 127.0.0.1] [--port 7860] [--share]

MODEL is a model that `sintrovae_jax.load` can load: a workdir, a checkpoint, or pretrained:NAME. Ctrl-C ends it.
"""

import socket
import threading

from sintrovae_jax import cli, compile_cache, extras, inference, streams, workdirs
from sintrovae_jax.errors import UserError
from sintrovae_jax.explore.uploads import MAX_BYTES


def main(argv: list[str]) -> None:
    """The command line. Returns after Ctrl-C. Raises `UserError`."""
    parser = cli.Parser(
        "explore",
        "MODEL [--step STEP] [--host 127.0.0.1] [--port 7860] [--share]",
        "Explores a model in the browser; Ctrl-C ends it.",
    )
    parser.add_argument("model", metavar="MODEL", help="a workdir, one of its checkpoints, or pretrained:NAME")
    parser.add_argument("--step", default="latest", help="a step, best or latest (the default)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0 lets other machines use the page (default: 127.0.0.1)"
    )
    parser.add_argument("--port", default="7860", help="default: 7860")
    parser.add_argument(
        "--share", action="store_true", help="create a public link, through a server of Gradio's makers"
    )
    args = parser.parse(argv[1:])
    extras.need_explore()
    port = _free(args.host, args.port)
    compile_cache.enable()
    model = inference.load(args.model, workdirs.step_of(args.step))
    from sintrovae_jax.explore.page import page

    streams.say(f"compiling what the page of {args.model} computes; once it is on disk, it starts faster")
    shipped = args.model.startswith("pretrained:")
    app = page(model, args.model if shipped else inference.locate(args.model)[0].name)  # without its folders
    try:
        _, local, shared = app.launch(
            server_name=args.host,
            server_port=port,
            share=args.share,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=MAX_BYTES,
            ssr_mode=False,
            footer_links=["api"],
            run_history=False,
        )
    except OSError as error:
        raise UserError(f"the page cannot be served at {args.host}:{port}: {error}") from None
    if args.share and not shared:
        streams.say("there is no public link: the server of Gradio's makers did not give one")
    print(f"{local}{f' and {shared}' if shared else ''} (Ctrl-C ends it)", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        app.close(verbose=False)


def _free(host: str, port: str) -> int:
    """The port, as a number. Raises `UserError` unless a server can listen on it."""
    if not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise UserError(f"--port is a whole number from 1 to 65535, not {port!r}")
    try:
        family, *_, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"cannot listen at {host}:{port} ({reason}): give another --host or --port") from None
    return int(port)


if __name__ == "__main__":
    cli.start(main)
