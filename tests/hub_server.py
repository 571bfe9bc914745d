"""A stand-in for the Hugging Face hub on 127.0.0.1: folders as repositories.

``python tests/hub_server.py FOLDER`` serves ``FOLDER/models/OWNER/NAME/…`` and
``FOLDER/datasets/OWNER/NAME/…`` and prints its address, for ``HF_ENDPOINT``. Every
revision is the same files, and `Hub.asked` has what was asked for; what
``huggingface_hub`` and ``datasets`` ask is answered as the hub does. `data_sets` writes
the paper's sets as their repositories hold them.
"""

import hashlib
import json
import os
import sys
import threading
import xml.etree.ElementTree as ElementTree
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789" * 4  # of every branch


class Hub(SimpleHTTPRequestHandler):
    """Answers for the repositories below the server's `folder`."""

    protocol_version = "HTTP/1.1"
    asked: set[tuple[str, str]] = set()  # (repository, revision)

    def log_message(self, *args) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/":
            return self._send([])
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[0] == "api":
            parts = parts[1:]
        if parts[0] not in ("models", "datasets"):
            parts = ["models", *parts]
        repository = "/".join(parts[1:3])
        what, revision = parts[3:5] or ("revision", "main")
        self.asked.add((repository, revision))
        commit = revision if len(revision) == 40 else COMMIT
        folder = self.server.folder / parts[0] / repository
        if not folder.is_dir():
            return self._send({}, 404, {"X-Error-Code": "RepoNotFound"})
        path = folder.joinpath(*parts[5:])
        files = [one for one in sorted(folder.rglob("*")) if one.is_file()]
        if what == "revision":
            names = [{"rfilename": str(one.relative_to(folder))} for one in files]
            info = {"id": repository, "sha": commit, "siblings": names, "tags": []}
            return self._send(info)
        if what == "tree":
            inside = [one for one in files if one.is_relative_to(path)]
            return self._send([_entry(folder, one) for one in inside])
        if what == "paths-info":
            asked = [folder / name for name in json.loads(content)["paths"]]
            return self._send([_entry(folder, one) for one in asked if one.exists()])
        if what != "resolve" or not path.is_file():
            return self._send({}, 404, {"X-Error-Code": "EntryNotFound"})
        etag = f'"{_entry(folder, path)["oid"]}"'
        self._send(path.read_bytes(), 200, {"ETag": etag, "X-Repo-Commit": commit})

    do_HEAD = do_POST = do_GET

    def _send(self, content, status: int = 200, headers: dict | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _entry(folder: Path, path: Path) -> dict:
    entry = {"type": "directory", "path": str(path.relative_to(folder)), "size": 0}
    if path.is_dir():
        return entry | {"oid": COMMIT}
    body = path.read_bytes()
    oid = hashlib.sha1(body).hexdigest()
    return entry | {"type": "file", "oid": oid, "size": len(body)}


@contextmanager
def serving(folder: Path):
    """Serve a folder; give a process's environment that has no other source of data."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.folder = folder
    threading.Thread(target=server.serve_forever, daemon=True).start()
    kept = {k: v for k, v in os.environ.items() if k != "COTSPEC_DATA"}
    address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield kept | {"HF_ENDPOINT": address, "HF_HOME": str(folder / "cache")}
    finally:
        server.shutdown()


def data_sets(source: Path, target: Path) -> None:
    """Write the published files of `source` as the hub's repositories hold them."""

    def repository(name: str, splits: dict[str, dict[str, list[dict]]]) -> None:
        folder = target / "datasets" / name
        header = ["---", "configs:"]
        for config, tables in splits.items():
            header += [f"- config_name: {config}", "  data_files:"]
            for split, rows in tables.items():
                file = folder / config / f"{split}.jsonl"
                file.parent.mkdir(parents=True, exist_ok=True)
                lines = [json.dumps(row) for row in rows]
                file.write_text("\n".join(lines) + "\n", "utf-8")
                header += [f"  - split: {split}", f"    path: {config}/{split}.jsonl"]
        (folder / "README.md").write_text("\n".join([*header, "---", ""]), "utf-8")

    def lines(file: str) -> list[dict]:
        text = (source / file).read_text("utf-8")
        return [json.loads(line) for line in text.split("\n") if line]

    def content(file: str):
        return json.loads((source / file).read_text("utf-8"))

    splits = {split: lines(f"gsm8k/{split}.jsonl") for split in ("train", "test")}
    repository("openai/gsm8k", {"main": splits})
    arith = [
        {"question": r["sQuestion"].strip(), "final_ans": f"{r['lSolutions'][0]:g}"}
        for r in content("multiarith/MultiArith.json")
    ]
    splits = {"train": arith[::-2], "test": arith[0::2]}  # another order than published
    repository("ChilleD/MultiArith", {"default": splits})
    splits = {"train": [], "test": []}
    for row in content("svamp/SVAMP.json"):
        splits["test" if row["ID"].endswith("7") else "train"].append(row)
    repository("ChilleD/SVAMP", {"default": splits})
    names = {"body": "Body", "question": "Question", "answer": "Answer"}
    problems = ElementTree.parse(source / "asdiv" / "ASDiv.xml").iter("Problem")
    asdiv = [{k: one.findtext(tag) for k, tag in names.items()} for one in problems]
    repository("EleutherAI/asdiv", {"default": {"validation": asdiv}})
    stems = sorted(path.stem for path in (source / "bbh" / "tasks").glob("*.json"))
    bbh = {one: {"test": content(f"bbh/tasks/{one}.json")["examples"]} for one in stems}
    repository("lukaemon/bbh", bbh)


if __name__ == "__main__":
    with serving(Path(sys.argv[1])) as environment:
        print(environment["HF_ENDPOINT"], flush=True)
        threading.Event().wait()
