"""Run in an environment with Argilla's client: makes a dataset and logs a file of records to a server that takes all.

python import_argilla.py SETTINGS.json RECORDS.json EXPORT.json

What the client checks is checked; the server of Argilla needs Elasticsearch, and one of this file stands for it.
"""

import http.server
import json
import sys
import threading
import uuid
from pathlib import Path

import argilla

settings, records, exported = map(Path, sys.argv[1:])
sent = []


class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.reply({"id": str(uuid.uuid4()), "username": "owner", "role": "owner"})

    def do_PUT(self):
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        sent.extend(content["items"])
        items = [
            item | {"id": str(uuid.uuid4()), "metadata": {}, "responses": [], "suggestions": []}
            for item in content["items"]
        ]
        self.reply({"items": items, "updated_item_ids": []})

    def reply(self, content):
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = argilla.Argilla(f"http://127.0.0.1:{server.server_port}", "key")
workspace = argilla.Workspace("workspace", id=uuid.uuid4(), client=client)
dataset = argilla.Dataset(
    "klimb", workspace=workspace, settings=argilla.Settings.from_json(settings), client=client
)
dataset.id = uuid.uuid4()
dataset.records.from_json(records)
kept = [argilla.Record.from_dict(one) for one in json.loads(records.read_text())]
exported.write_text(json.dumps({"sent": sent, "records": [one.to_dict() for one in kept]}))
