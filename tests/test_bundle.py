"""The support bundle holds no prompt, answer, key, name or word of a server: every byte of it is searched for each."""

from __future__ import annotations

import getpass
import json
import socket
import sqlite3
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from answering import KEY, Command, command, serving, simulating
from support import MODEL

from batchrun.doctor import bundle
from batchrun.reports import Event
from batchrun.store.view import View

# One word for each place that something private may come from.
PLACES = (
    "prompt", "answer", "reasoning", "system", "template", "param", "paramname", "column", "cell", "file", "folder",
    "output", "error", "code", "kind", "finish", "replymodel", "listed", "rowmodel", "event", "eventkind", "job",
    "status", "url", "user", "home", "reason", "pricemodel",
)  # fmt: skip
MARK = {place: f"zebra{place}quark" for place in PLACES}
MEMBERS = ["checkpoint.json", "report.json", "report.txt", "versions.json"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / MARK["folder"]
    place.mkdir()
    return place


@pytest.fixture
def cli(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    for name in ("USER", "LOGNAME"):
        monkeypatch.setenv(name, MARK["user"])
    monkeypatch.setenv("HOME", f"/home/{MARK['home']}")
    return command(folder, monkeypatch, capfd)


async def chat(request: web.Request) -> web.StreamResponse:
    """Some prompts are refused with an error that quotes them in every field; the others are quoted in the answer."""
    asked = await request.json()
    text = asked["messages"][-1]["content"]
    if "number 0" in text or "number 3" in text:
        said = f"{MARK['error']}: {MARK['prompt']} {MARK['system']} {KEY[:12]}"
        error = {"message": said, "type": MARK["kind"], "code": MARK["code"], "param": text}
        return web.json_response({"error": error}, status=422)
    return web.json_response(
        {
            "model": MARK["replymodel"],
            "choices": [
                {
                    "message": {"content": f"{MARK['answer']} {text}", "reasoning": MARK["reasoning"]},
                    "finish_reason": MARK["finish"],
                }
            ],
            "usage": {"prompt_tokens": 9, "completion_tokens": 9},
        }
    )


async def listing(_: web.Request) -> web.StreamResponse:
    return web.json_response([{"id": MARK["listed"], "type": "chat"}, {"id": MODEL, "type": "chat"}])


async def whoami(_: web.Request) -> web.StreamResponse:
    return web.json_response({"error": {"message": f"{MARK['error']} {KEY}", "type": MARK["kind"]}}, status=404)


def written(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.comment == b""
        assert not any(member.comment or member.extra for member in archive.infolist())
        return {name: archive.read(name) for name in archive.namelist()}


def private(path: Path) -> list[tuple[str, str]]:
    """(member, word) for every word that must not be in the bundle and is, in any case, also in parts of the key."""
    words = [
        *MARK.values(),
        *(KEY[at : at + 8] for at in range(len(KEY) - 8)),
        str(path.parent),
        "/home",
        "zebra",
        "quark",
    ]
    words += [word for word in (socket.gethostname(), getpass.getuser()) if len(word) > 5]
    found = []
    for name, content in {**written(path), "the file itself": path.read_bytes()}.items():
        text = f"{name}\n{content.decode(errors='replace')}".lower()
        found += [(name, word) for word in words if word.lower() in text]
        found += [(name, word) for word in words if word.encode("utf-16-le") in content]
    return found


def inputs(folder: Path) -> None:
    rows = [
        {MARK["column"]: f"{MARK['cell']} number {n}", "prompt": MARK["prompt"], "text": f"{MARK['prompt']} number {n}"}
        for n in range(6)
    ]
    rows += [{"model": MARK["rowmodel"], **row} for row in rows[:1]]
    (folder / f"{MARK['file']}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"not": json\n')
    (folder / "t.j2").write_text(f"{MARK['template']} {{{{ text }}}}")


def run_words(url: str) -> tuple[str, ...]:
    return (
        "run", f"{MARK['file']}.jsonl", "-m", MODEL, "--base-url", url, "--template", "t.j2",
        "--system", MARK["system"], "--param", f'stop=["{MARK["param"]}"]', "--param", "top_p=0.5",
        "--param", f'{MARK["paramname"]}=1', "--max-tokens", "7", "--price", f"{MARK['pricemodel']}=1/2",
        "-o", f"{MARK['output']}.jsonl", "--skip-bad-rows", "--route", "live", "--concurrency", "2",
    )  # fmt: skip


@pytest.fixture
def bundled(cli: Command, folder: Path) -> Path:
    """A bundle about a job with a private word in every place there is."""
    inputs(folder)
    routes = {"POST /v1/chat/completions": chat, "GET /v1/models": listing, "GET /v3/whoami": whoami}
    with serving(routes) as url:
        code, _, err = cli(*run_words(url))
        assert code == 10, err
        (checkpoint,) = folder.glob("checkpoints/*.db")
        stain(checkpoint)
        words = ("--base-url", url, "-m", MARK["listed"], "--yes", "--bundle", str(folder / "support.zip"))
        code, _, err = cli("doctor", *words)
    assert "Wrote " in err
    return folder / "support.zip"


def stain(checkpoint: Path) -> None:
    """Put private words where only trouble with batches, or a server that means ill, would put them."""
    kinds = ["batch", "opened", "parked", "finished", "credits", "throttled", "deadline", "fallback", MARK["eventkind"]]
    with sqlite3.connect(checkpoint) as connection:
        connection.executemany(
            "insert into event(at_ms, kind, detail) values (1, ?, ?)",
            [(kind, f"5 rows to send {MARK['event']}") for kind in kinds],
        )
        connection.execute("update run set state = 'failed', reason = ?", (f"broke on {MARK['reason']}",))
        connection.execute(
            "insert into batch(id, state, model, file_name, nonce, lines, size, sha256, reserved_nano, planned_ms) "
            "values (1, 'planned', ?, ?, ?, 3, 3, zeroblob(32), 0, 1)",
            (MARK["rowmodel"], MARK["file"], MARK["job"]),
        )
        connection.execute(
            "insert into batch_job(id, batch, status, error, seen_ms, moved_ms) values (?, 1, ?, ?, 1, 1)",
            (MARK["job"], MARK["status"], MARK["error"]),
        )
    connection.close()


def test_the_checkpoint_behind_the_bundle_does_hold_all_that(bundled: Path) -> None:
    (checkpoint,) = bundled.parent.glob("checkpoints/*.db")
    with View(str(checkpoint)) as view:
        told = [*view.rejected(), *view.events(100)]
        answers = b"".join(outcome.body or b"" for outcome in view.outcomes())
        stored = [view.job(), view.sources(), view.ledger(), view.batches(), view.last_run(), told, answers]
    elsewhere = {"column", "cell", "code", "kind", "listed", "url", "user", "home"}
    assert [place for place in PLACES if MARK[place] not in str(stored) and place not in elsewhere] == []


def test_no_byte_of_the_bundle_holds_anything_private(bundled: Path) -> None:
    assert sorted(written(bundled)) == MEMBERS
    assert private(bundled) == []


def test_what_is_needed_to_find_a_fault_is_in_it(bundled: Path) -> None:
    members = written(bundled)
    versions, report = json.loads(members["versions.json"]), json.loads(members["report.json"])
    about = json.loads(members["checkpoint.json"])
    assert versions["packages"]["aiohttp"]
    assert versions["sqlite"]
    assert {check["name"]: check["state"] for check in report["checks"]}["network"] == "ok"
    assert b"ok       network" in members["report.txt"]

    status = about["status"]
    assert (status["total"], status["answered"], status["rejected"], status["again"]) == (8, 4, 4, 0)
    assert (status["provider"], status["state"], status["reason"]) == ("other", "failed", "other")
    assert [model["replies"] for model in status["models"]] == [4]
    assert status["models"][0]["model"].startswith("model ")
    assert status["batches"] == [
        {
            "model": "model 2",
            "state": "other",
            "has_job": True,
            "number": 1,
            "lines": 3,
            "progress": None,
            "since_ms": 1,
        }
    ]
    assert {"fault": "bad_request", "status": 422, "rows": 3} in about["rejections"]
    assert {"fault": "bad_row", "status": None, "rows": 1} in about["rejections"]

    job = about["job"]
    assert job["inputs"] == ["*.jsonl"]
    assert job["asking"]["model"] == MODEL
    assert job["asking"]["template"] == job["asking"]["system"] == "(text)"
    assert job["asking"]["params"] == {"stop": {"entries": 1}, "top_p": 0.5, "max_tokens": 7, "other": 1}
    assert (job["limits"]["concurrency"], job["route"], job["skip_bad_rows"]) == (2, "live", True)
    assert about["input"][0]["rows"] == 8

    diary = about["diary"]
    assert {"opened", "finished", "batch", "other"} <= set(diary["kinds"])
    assert [line["detail"] for line in diary["details"] if line["kind"] == "opened"] == ["7 rows to send"]


def test_a_simulated_job_is_told_with_the_names_of_its_models(cli: Command, folder: Path) -> None:
    inputs(folder)
    run = [word for word in run_words("") if word]
    run.remove("--base-url")
    code, _, err = cli(*run, "--simulate")
    assert code in {0, 10}, err
    code, _, _ = cli("doctor", "--simulate", "--bundle", "b.zip")
    assert code == 0
    about = json.loads(written(folder / "b.zip")["checkpoint.json"])
    assert about["status"]["provider"] == "simulated"
    assert [model["model"] for model in about["status"]["models"]] == [f"simulated/{MODEL}"]
    assert private(folder / "b.zip") == []


@pytest.mark.parametrize("damage", [b"", b"not a database at all, but " + MARK["prompt"].encode() * 500])
def test_a_checkpoint_that_cannot_be_read_is_told_by_the_kind_of_error(
    cli: Command, folder: Path, damage: bytes
) -> None:
    (folder / f"{MARK['file']}.db").write_bytes(damage)
    with simulating() as simulator:
        words = ("--base-url", simulator.url, "--checkpoint", f"{MARK['file']}.db", "--bundle", "b.zip")
        code, _, _ = cli("doctor", *words)
    assert code == 11
    about = json.loads(written(folder / "b.zip")["checkpoint.json"])
    assert about == {"unreadable": "StorageError", "exit_code": 11}
    assert private(folder / "b.zip") == []


def test_without_a_checkpoint_and_without_a_key_there_is_a_bundle_all_the_same(
    cli: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TOGETHER_API_KEY")
    monkeypatch.setenv("HTTPS_PROXY", f"http://{MARK['user']}:{MARK['home']}@127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    code, _, _ = cli("doctor", "--bundle", "b.zip", "--base-url", f"https://{MARK['url']}.invalid/{MARK['url']}")
    assert code == 5
    assert json.loads(written(folder / "b.zip")["checkpoint.json"]) == {"there": False}
    assert private(folder / "b.zip") == []


def test_a_bundle_never_takes_the_place_of_a_file(cli: Command, folder: Path) -> None:
    (folder / "in.jsonl").write_text("mine")
    (folder / "old.zip").write_text("mine")
    for name in ("in.jsonl", "old.zip", "new"):
        code, out, err = cli("doctor", "--bundle", name)
        assert (code, out) == (2, "")
        assert err.startswith("Error: The bundle")
    assert [(folder / name).read_text() for name in ("in.jsonl", "old.zip")] == ["mine", "mine"]


def test_a_bundle_that_cannot_be_written_leaves_the_report_and_says_so(cli: Command) -> None:
    code, out, err = cli("doctor", "--simulate", "--bundle", "no-such-folder/b.zip")
    assert code == 11
    assert "Nothing is wrong." in out
    assert err.startswith("Error: no-such-folder/b.zip cannot be written")
    assert err.endswith("Choose another place for the bundle.\n")


def test_a_detail_is_shown_only_when_the_whole_of_it_is_ours() -> None:
    told = {
        "opened": ["7 rows to send", "7 rows to send me"],
        "parked": [
            "credits: 1 answered, 0 rejected, 5 left",
            "credits: 1 answered, 0 rejected, 5 left of it",
            "a secret",
        ],
        "finished": ["1 answered, 0 rejected, 0 left", "secret 1 answered, 0 rejected, 0 left"],
        "credits": ["The account has credits again.", "The account has credits again. A secret."],
        "retry": ["3 rows pending again (too_long)", "3 rows pending again (secret)"],
        "batch": ["batch 1: 3 rows"],
        "loss": ["2 answers are gone"],
        "secret": ["7 rows to send"],
    }
    events = [Event(float(n), kind, detail) for kind, details in told.items() for n, detail in enumerate(details)]
    diary = bundle._diary(events)
    assert [line["detail"] for line in diary["details"]] == [
        told[kind][0] for kind in ("opened", "parked", "finished", "credits", "retry")
    ]
    assert "secret" not in json.dumps(diary)
    assert set(diary["kinds"]) == set(told) - {"secret"} | {"other"}


class Inner(msgspec.Struct):
    name: str
    number: int


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("text", "(text)"),
        (b"bytes", "(text)"),
        (["text"], {"entries": 1}),
        ({"text": "text"}, {"entries": 1}),
        (5, 5),
        (True, True),
        (None, None),
        (Inner("text", 5), {"name": "(text)", "number": 5}),
        (object(), "(text)"),
    ],
)
def test_options_that_nobody_thought_of_yet_lose_their_words(value: Any, expected: Any) -> None:
    assert bundle._bare(value) == expected
