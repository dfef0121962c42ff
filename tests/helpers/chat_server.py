"""A server with chat completions on this machine, for judges to ask."""

from __future__ import annotations

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image


class ChatServer:
    """Chat completions on this machine. `answer(levels, request)` gives text, or (status, body), and may take its time."""

    def __init__(self, answer):
        self.answer, self.requests, self.busy, self.most_at_once = answer, [], 0, 0
        lock, outer = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                request |= {"path": self.path, "authorization": self.headers["Authorization"]}
                with lock:
                    outer.requests.append(request)
                    outer.busy += 1
                    outer.most_at_once = max(outer.most_at_once, outer.busy)
                found = outer.answer(levels_of(request), request)
                with lock:
                    outer.busy -= 1
                if isinstance(found, str):
                    found = 200, json.dumps({"choices": [{"message": {"content": found}}]})
                status, body = found
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(body.encode())))
                    self.end_headers()
                    self.wfile.write(body.encode())
                except OSError:  # the client gave up
                    self.close_connection = True

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/v1"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def parts(request) -> list:
    (message,) = request["messages"]
    assert message["role"] == "user"
    return message["content"]


def levels_of(request) -> list[int]:
    """The grey level of each picture in the request."""
    found = []
    for part in parts(request)[:-1]:
        head, _, data = part["image_url"]["url"].partition(",")
        assert head == "data:image/jpeg;base64"
        image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
        assert image.format == "JPEG"
        found.append(image.getpixel((0, 0))[0])
    return found
