"""A plain HTTP sink that knows nothing of linesight: python3 plain_sink.py FOLDER. Prints its port, then writes each part of
each multipart request to FOLDER/<Idempotency-Key>.<n>/<field>, where n counts the requests."""

import email.policy
import http.server
import itertools
import pathlib
import sys

FOLDER, COUNT = pathlib.Path(sys.argv[1]), itertools.count()


class Sink(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        head = b"Content-Type: " + self.headers["Content-Type"].encode() + b"\r\n\r\n"
        message = email.message_from_bytes(head + body, policy=email.policy.HTTP)
        folder = FOLDER / f"{self.headers['Idempotency-Key']}.{next(COUNT)}"
        folder.mkdir()
        for part in message.iter_parts():
            name = part.get_param("name", header="content-disposition")
            (folder / str(name)).write_bytes(part.get_payload(decode=True))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


server = http.server.HTTPServer(("127.0.0.1", 0), Sink)
print(server.server_port, flush=True)
server.serve_forever()
