"""`realm-min page`: serve the page on this machine until Ctrl-C, or save one answer."""

from __future__ import annotations

import argparse
import socket
import webbrowser
from urllib.parse import urlencode

from ..app.ask import judge_of
from ..app.cli import load_model
from ..app.printable import remark, say
from ..files.atomic import write_atomically
from ..ranks import distributed
from ..ranks.devices import chosen_device
from .running import Running
from .saved import self_contained

SHIPPED = "the model that ships"


def run(options: argparse.Namespace) -> None:
    """Run `realm-min page`.

    Raises:
        OSError: the port is taken.
        ValueError: torchrun started it; or the question to save cannot be answered.
    """
    if distributed.world().size > 1:
        raise ValueError("a page is served by one process: start it without torchrun")
    if options.save:
        save(running_model(options), options)
        return
    with listening(options.port) as listener:  # before the model is loaded: the port may be taken
        serve(running_model(options), listener, options)


def running_model(options: argparse.Namespace) -> Running:
    model = load_model(options.model, options.corpus).to(chosen_device(options.device))
    return Running(model, options.model or SHIPPED, judge_of(options))


def save(running: Running, options: argparse.Namespace) -> None:
    """Write the answer to the question, complete or not at all."""
    html = self_contained(running, options.question, options.k)
    with write_atomically(options.save) as temporary:
        temporary.write_text(html, encoding="utf-8", newline="")
    remark(f"Saved in {options.save}")


def listening(port: int) -> socket.socket:
    """A socket on 127.0.0.1, of any free port if that is 0."""
    listener = socket.socket()
    try:
        listener.bind(("127.0.0.1", port))
    except OSError as error:
        listener.close()
        raise OSError(f"127.0.0.1:{port} cannot be served ({error.strerror}): give another --port, or none") from None
    listener.listen()
    return listener


def serve(running: Running, listener: socket.socket, options: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C, and open the browser on it."""
    import uvicorn

    from .server import application

    asked = {"question": options.question, "k": options.k}
    asked = {name: value for name, value in asked.items() if value is not None}
    address = f"http://127.0.0.1:{listener.getsockname()[1]}/{'#' + urlencode(asked) if asked else ''}"
    say(f"The page is at {address}")
    remark("Ctrl-C ends it.")
    if not options.no_browser:
        webbrowser.open(address)
    config = uvicorn.Config(application(running), log_level="warning", lifespan="off", server_header=False)
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:  # the page's ordinary end
        remark()
