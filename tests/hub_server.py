"""A stand-in for the Hugging Face hub on 127.0.0.1: folders as repositories.

``python tests/hub_server.py FOLDER`` serves ``FOLDER/models/OWNER/NAME/…`` and
``FOLDER/datasets/OWNER/NAME/…`` and prints its address, for ``HF_ENDPOINT``. Every
revision is the same files, and `Hub.asked` has what was asked for; what
``huggingface_hub`` and ``datasets`` ask is answered as the hub does. `data_sets` writes
the paper's sets as their repositories hold them.
"""

from __future__ import annotations

import hashlib
import json
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

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        folder, what, _, _ = self._place()
        if what != "paths-info" or not folder.is_dir():
            return self._send(404, b"{}")
        names = json.loads(asked)["paths"]
        entries = [_entry(folder, folder / name) for name in names]
        self._send(200, json.dumps([e for e in entries if e]).encode())

    def _place(self) -> tuple[Path, str, str, str]:
        """Folder, "revision", "tree", "paths-info" or "resolve", commit, the rest."""
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[0] == "api":
            parts = parts[1:]
        if parts[0] not in ("models", "datasets"):
            parts = ["models", *parts]
        kind, *rest = parts
        repository = self.server.folder / kind / "/".join(rest[:2])
        what, revision = rest[2:4] or ("revision", "main")
        self.asked.add(("/".join(rest[:2]), revision))
        commit = revision if len(revision) == 40 else COMMIT
        return repository, what, commit, "/".join(rest[4:])

    def _answer(self, *, with_body: bool) -> None:
        if self.path == "/":
            return self._send(200, b"", with_body)
        folder, what, commit, rest = self._place()
        if not folder.is_dir():
            headers = {"X-Error-Code": "RepoNotFound"}
            return self._send(404, b"{}", with_body, headers)
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        if what == "revision":
            names = [{"rfilename": str(path.relative_to(folder))} for path in files]
            name = "/".join(folder.parts[-2:])
            info = {"id": name, "sha": commit, "siblings": names, "tags": []}
            return self._send(200, json.dumps(info).encode(), with_body)
        if what == "tree":
            inside = folder / rest
            entries = [_entry(folder, p) for p in files if p.is_relative_to(inside)]
            return self._send(200, json.dumps(entries).encode(), with_body)
        path = folder / rest
        if what != "resolve" or not path.is_file():
            headers = {"X-Error-Code": "EntryNotFound"}
            return self._send(404, b"{}", with_body, headers)
        body = path.read_bytes()
        etag = hashlib.sha1(body).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit}
        self._send(200, body, with_body, headers)

    def _send(
        self,
        status: int,
        body: bytes,
        with_body: bool = True,
        headers: dict | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if with_body:
            self.wfile.write(body)


def _entry(folder: Path, path: Path) -> dict | None:
    if not path.exists():
        return None
    name = str(path.relative_to(folder))
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": COMMIT, "size": 0}
    oid = hashlib.sha1(path.read_bytes()).hexdigest()
    size = path.stat().st_size
    return {"type": "file", "path": name, "oid": oid, "size": size}


@contextmanager
def serving(folder: Path):
    """Serve a folder; give the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.folder = folder
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
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
    svamp = content("svamp/SVAMP.json")
    splits = {
        "train": [row for row in svamp if not row["ID"].endswith("7")],
        "test": [row for row in svamp if row["ID"].endswith("7")],
    }
    repository("ChilleD/SVAMP", {"default": splits})
    names = {"body": "Body", "question": "Question", "answer": "Answer"}
    problems = ElementTree.parse(source / "asdiv" / "ASDiv.xml").iter("Problem")
    asdiv = [
        {column: problem.findtext(tag) for column, tag in names.items()}
        for problem in problems
    ]
    repository("EleutherAI/asdiv", {"default": {"validation": asdiv}})
    repository(
        "lukaemon/bbh",
        {
            path.stem: {"test": content(f"bbh/tasks/{path.name}")["examples"]}
            for path in sorted((source / "bbh" / "tasks").glob("*.json"))
        },
    )


if __name__ == "__main__":
    with serving(Path(sys.argv[1])) as address:
        print(address, flush=True)
        threading.Event().wait()
