"""Serve a folder on this machine, with the headers that let a page use several threads."""

from __future__ import annotations

import argparse
import contextlib
import webbrowser
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from dgunet.base.errors import InputError, command

ISOLATION = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
}


class Handler(SimpleHTTPRequestHandler):
    extensions_map = {  # noqa: RUF012 (the base class has it so)
        **SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }
    isolated = True

    def end_headers(self) -> None:
        for name, value in ISOLATION.items() if self.isolated else ():
            self.send_header(name, value)
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def copyfile(self, source, outputfile) -> None:
        with contextlib.suppress(ConnectionError):  # a request that the page has cancelled
            super().copyfile(source, outputfile)

    def log_message(self, *_) -> None:
        pass


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free (%(default)s)")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    parser.add_argument("--no_isolation", action="store_true", help="without the headers")
    options = parser.parse_args()
    if not (options.folder / "index.html").is_file():
        raise InputError(f"{options.folder}: has no index.html; expected what web/build.py makes")
    Handler.isolated = not options.no_isolation
    handler = partial(Handler, directory=str(options.folder))
    try:
        server = ThreadingHTTPServer(("127.0.0.1", options.port), handler)
    except OSError as error:
        raise InputError(f"port {options.port}: {error.strerror}; choose another port") from error
    address = f"http://localhost:{server.server_port}/"
    print(f"{address} (Ctrl-C ends)", flush=True)
    if options.open:
        webbrowser.open(address)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()


if __name__ == "__main__":
    main()
