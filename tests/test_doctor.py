"""Doctor: each trouble has a name, a sentence, a next step and an exit code, and doctor itself never breaks."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import sqlite3
import ssl
import subprocess
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from answering import KEY, Command, command, saying, serving, simulating
from support import MODEL

from batchrun.doctor import machine
from batchrun.doctor.findings import Finding, State, bad, exit_code, guarded, ok, skipped, warn
from batchrun.doctor.server import _key_refused
from batchrun.errors import StorageError
from batchrun.job import Asking, Job
from batchrun.store import engine

NAMES = [
    "versions", "folder", "checkpoint", "space", "open files", "environment", "network", "clock", "key", "models",
    "model", "probe",
]  # fmt: skip
WHO = {"organization_id": "o"}
LIST = [{"id": MODEL, "type": "chat", "context_length": 4096, "pricing": {"input": 0.05, "output": 0.2}}]
REPLY = {
    "model": MODEL, "choices": [{"message": {"content": "x"}, "finish_reason": "length"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1},
}  # fmt: skip
GOOD = {"GET /v3/whoami": saying(body=WHO), "GET /v1/models": saying(body=LIST),
        "POST /v1/chat/completions": saying(body=REPLY)}  # fmt: skip


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    return command(tmp_path, monkeypatch, capfd)


def looked(cli: Command, *words: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Doctor's exit code and its checks by name; every check is there, in its place."""
    code, out, _ = cli("doctor", "--json", *words)
    report = json.loads(out)
    assert report["exit_code"] == code
    assert [check["name"] for check in report["checks"]] == NAMES
    for check in report["checks"]:
        assert check["sentence"].endswith((".", "?", "…")), check
        assert check["state"] != "bad" or check["exit_code"], check
    return code, {check["name"]: check for check in report["checks"]}


def states(checks: dict[str, dict[str, Any]], *names: str) -> list[str]:
    return [checks[name]["state"] for name in names]


def test_on_a_good_server_all_is_well_and_nothing_paid_is_sent(cli: Command) -> None:
    with simulating() as simulator:
        code, checks = looked(cli, "--base-url", simulator.url, "-m", MODEL)
        assert list(simulator.account.charges) == []
    assert code == 0
    assert states(checks, "network", "clock", "key", "models", "model") == ["ok"] * 5
    assert checks["key"]["sentence"] == "The server takes the key read from TOGETHER_API_KEY."
    assert checks["probe"]["state"] == "skipped"
    assert checks["probe"]["next_step"] == "--yes sends one."


def test_a_probe_sends_one_token_and_only_when_the_user_says_so(cli: Command) -> None:
    with simulating() as simulator:
        code, checks = looked(cli, "--base-url", simulator.url, "-m", MODEL, "--yes")
        assert len(list(simulator.account.charges)) == 1
    assert (code, checks["probe"]["sentence"]) == (0, f"{MODEL} answers.")


def test_the_report_for_people_says_what_to_do_under_what_is_bad(cli: Command) -> None:
    with simulating() as simulator:
        code, out, err = cli("doctor", "--base-url", simulator.url, "-m", "gpt-oss-20b")
    assert (code, err) == (9, "")
    lines = out.splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("bad      model"))
    assert lines[at].endswith("gpt-oss-20b is not in the server's list.")
    assert lines[at + 1].strip() == f"-> Did you mean {MODEL}?"
    assert lines[-1] == "Bad: model. Exit code 9."
    assert max(map(len, lines)) <= 100


def test_a_refused_key_is_told_with_where_it_came_from_and_the_rest_is_skipped(cli: Command) -> None:
    with simulating(refused_keys=(KEY,)) as simulator:
        code, checks = looked(cli, "--base-url", simulator.url, "-m", MODEL, "--yes")
        assert list(simulator.account.charges) == []
    assert code == 4
    assert checks["key"]["sentence"] == "The server refuses the key read from TOGETHER_API_KEY (401)."
    assert "revoked" in checks["key"]["next_step"]
    assert states(checks, "models", "model", "probe") == ["skipped"] * 3


def test_who_has_a_refused_key_of_together_learns_where_to_get_one() -> None:
    found = _key_refused(401, Job((), "", Asking()), "read from TOGETHER_API_KEY")
    assert "https://api.together.ai/settings/api-keys" in found.next_step


def test_the_key_may_come_from_a_file_and_its_name_is_all_that_is_told(
    cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TOGETHER_API_KEY")
    (tmp_path / "key.txt").write_text(f"{KEY}\n")
    monkeypatch.setenv("TOGETHER_API_KEY_FILE", str(tmp_path / "key.txt"))
    with simulating() as simulator:
        code, checks = looked(cli, "--base-url", simulator.url)
    assert code == 0
    assert "the file that TOGETHER_API_KEY_FILE names" in checks["environment"]["sentence"]


def test_without_a_key_for_together_the_network_is_looked_at_all_the_same(
    cli: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TOGETHER_API_KEY")
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setenv("NO_PROXY", "")
    code, checks = looked(cli)
    assert code == 5
    assert states(checks, "environment", "network", "clock", "key") == ["bad", "bad", "skipped", "skipped"]
    assert "https://api.together.ai/settings/api-keys" in checks["environment"]["next_step"]


@pytest.mark.parametrize("value", ["two words", "caf\u00e9", "line\nbreak"])
def test_a_key_that_cannot_be_one_is_told_without_showing_it(
    cli: Command, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("TOGETHER_API_KEY", value)
    with serving(GOOD) as url:
        code, checks = looked(cli, "--base-url", url)
    assert (code, checks["environment"]["state"]) == (2, "bad")
    assert value not in json.dumps(checks, ensure_ascii=False)
    assert states(checks, "clock", "key", "probe") == ["ok", "skipped", "skipped"]


def test_who_types_the_key_where_its_variable_belongs_does_not_read_it_again(
    cli: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{closed_port()}")
    code, out, err = cli("doctor", "--key-env", "typed_5ec2e7_by_mistake")
    assert code != 0
    assert "typed_5ec2e7" not in out + err
    assert "the variable that --key-env names" in out


def test_a_key_for_together_is_not_sent_to_another_host_and_doctor_says_so(cli: Command) -> None:
    code, checks = looked(cli, "--base-url", "https://nosuch.invalid")
    assert code == 5
    assert checks["environment"]["state"] == "warn"
    assert "in TOGETHER_API_KEY and not sent" in checks["environment"]["sentence"]
    assert "--key-env" in checks["environment"]["next_step"]


def test_of_a_proxy_only_host_and_port_are_told(cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    port = closed_port()
    monkeypatch.setenv("HTTPS_PROXY", f"http://walter:hunter2@127.0.0.1:{port}/path?query")
    monkeypatch.setenv("NO_PROXY", "")
    code, checks = looked(cli, "--base-url", "https://example.org")
    assert code == 5
    assert f"the proxy 127.0.0.1:{port}." in checks["environment"]["sentence"]
    assert f"No connection to 127.0.0.1:{port}" in checks["network"]["sentence"]
    said = json.dumps(checks)
    assert not [word for word in ("walter", "hunter2", "query") if word in said]


@pytest.mark.parametrize(
    "proxy", ["walter:hunter2@proxy:3128", "http://[bad", "http://host:portly", "socks5://h:1", "::::"]
)
def test_a_proxy_that_is_no_address_is_bad_and_not_quoted(
    cli: Command, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    monkeypatch.setenv("NO_PROXY", "")
    code, checks = looked(cli, "--base-url", "https://example.org", "--key-env", "TOGETHER_API_KEY")
    assert (code, checks["environment"]["state"], checks["network"]["state"]) == (2, "bad", "skipped")
    assert proxy not in json.dumps(checks)


def test_of_a_base_url_neither_path_nor_password_is_told(cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOGETHER_BASE_URL", f"http://127.0.0.1:{closed_port()}/secret-path/v1")
    _, checks = looked(cli)
    assert "secret-path" not in json.dumps(checks)
    code, checks = looked(cli, "--base-url", "https://walter:hunter2@example.org")
    assert (code, checks["environment"]["state"]) == (2, "bad")
    assert "hunter2" not in json.dumps(checks)
    assert states(checks, *NAMES[6:]) == ["skipped"] * 6


def closed_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


def test_a_name_a_connection_and_a_certificate_are_told_apart(cli: Command, certificate: ssl.SSLContext) -> None:
    code, checks = looked(cli, "--base-url", "https://nosuch.invalid")
    assert (code, checks["network"]["state"]) == (5, "bad")
    assert checks["network"]["sentence"] == "The name nosuch.invalid cannot be looked up (DNS)."

    port = closed_port()
    code, checks = looked(cli, "--base-url", f"http://127.0.0.1:{port}")
    assert (code, checks["network"]["sentence"]) == (5, f"No connection to 127.0.0.1:{port} (Connection refused).")

    with serving(GOOD) as url:
        code, checks = looked(cli, "--base-url", url.replace("http:", "https:"))
    assert code == 5
    assert "can be reached, but not over a secure connection" in checks["network"]["sentence"]

    with serving(GOOD, certificate) as url:
        code, checks = looked(cli, "--base-url", url)
    assert code == 5
    assert "The certificate of 127.0.0.1 is not trusted (self-signed certificate)." in checks["network"]["sentence"]
    assert "SSL_CERT_FILE" in checks["network"]["next_step"]
    assert states(checks, *NAMES[7:]) == ["skipped"] * 5


@pytest.fixture
def certificate(tmp_path: Path) -> ssl.SSLContext:
    """One that nobody signed."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl makes the certificate")
    names = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")]
    words = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    subprocess.run([openssl, *words, *names, "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    return context


@pytest.mark.parametrize(
    ("away", "state", "words"),
    [(0, "ok", "agrees"), (30, "ok", "agrees"), (3600, "warn", "behind"), (-3600, "warn", "ahead of")],
)
def test_a_clock_that_is_off_by_more_than_a_minute_is_a_warning(
    cli: Command, away: float, state: str, words: str
) -> None:
    who = saying(body=WHO, Date=formatdate(time.time() + away, usegmt=True))
    with serving({**GOOD, "GET /v3/whoami": who}) as url:
        code, checks = looked(cli, "--base-url", url)
    assert (code, checks["clock"]["state"]) == (0, state)
    assert words in checks["clock"]["sentence"]


@pytest.mark.parametrize("date", ["yesterday", "Mon, 99 Jan 2026 00:00:00 GMT", "1 Jan 99999999999999999999 00:00:00"])
def test_a_date_that_is_none_tells_nothing_of_the_clock(cli: Command, date: str) -> None:
    with serving({**GOOD, "GET /v3/whoami": saying(body=WHO, Date=date)}) as url:
        code, checks = looked(cli, "--base-url", url)
    assert (code, checks["clock"]["state"]) == (0, "skipped")


JUNK = [
    saying(body=b"<html>Please log in</html>"),
    saying(body=b""),
    saying(body=b"\xff\xfe"),
    saying(body=b"[" * 100_000),
    saying(body={"data": 5}),
    saying(body=[1, None, {"id": 5}]),
    saying(302, Location="https://login.example.org/"),
    saying(400, b"no"),
    saying(403, b"<html>blocked</html>"),
    saying(404, {"detail": "Not Found"}),
    saying(429, {"error": {"message": "slow down"}}),
    saying(500, b"oops"),
    saying(503, {"error": {"message": "The server is overloaded or not ready yet."}}),
]


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("place", ["all", *GOOD])
def test_no_junk_from_a_server_breaks_doctor(cli: Command, junk: Any, place: str) -> None:
    routes = dict.fromkeys(GOOD, junk) if place == "all" else {**GOOD, place: junk}
    with serving(routes) as url:
        code, checks = looked(cli, "--base-url", url, "-m", MODEL, "--yes")
    assert code in {0, 2, 4, 5, 9}
    assert not [check for check in checks.values() if "itself failed" in check["sentence"]]
    if place in {"all", "POST /v1/chat/completions"}:
        assert checks["probe"]["state"] != "ok"


def test_a_401_is_about_the_key_in_whatever_form_it_comes(cli: Command) -> None:
    with serving(dict.fromkeys(GOOD, saying(401, b"Unauthorized"))) as url:
        code, checks = looked(cli, "--base-url", url)
    assert (code, checks["key"]["exit_code"]) == (4, 4)


@pytest.mark.parametrize("page", [JUNK[0], JUNK[6], JUNK[8]])
def test_something_that_answers_in_the_servers_place_is_bad_and_does_not_count_as_a_taken_key(
    cli: Command, page: Any
) -> None:
    with serving(dict.fromkeys(GOOD, page)) as url:
        code, checks = looked(cli, "--base-url", url, "-m", MODEL, "--yes")
    assert (code, checks["key"]["state"]) == (5, "bad")
    assert "in the server's place" in checks["key"]["next_step"]
    assert states(checks, "models", "model", "probe") == ["skipped"] * 3


@pytest.mark.parametrize(
    ("refused", "code", "state", "words"),
    [
        (saying(402, {"error": {"message": "Credit limit exceeded.", "type": "credit_limit"}}), 3, "bad", "credits"),
        (saying(401, {"error": {"message": "Invalid API key"}}), 4, "bad", "refuses the key"),
        (saying(404, {"error": {"message": "x", "code": "model_not_available"}}), 9, "bad", "cannot be called"),
        (saying(503, {"error": {"message": "The server is overloaded or not ready yet."}}), 5, "bad", "overloaded"),
        (saying(500, {"error": {"message": "Internal Server Error"}}), 5, "bad", "failed"),
        (saying(429, {"error": {"message": "You have been rate limited"}}), 0, "warn", "too many requests"),
        (saying(400, {"error": {"message": "no such thing"}}), 2, "bad", "no such thing"),
        (saying(200, {**REPLY, "model": "openai/gpt-oss-120b"}), 0, "warn", "answered by openai/gpt-oss-120b"),
    ],
)
def test_a_refused_probe_is_named_in_plain_words_with_its_exit_code(
    cli: Command, refused: Any, code: int, state: str, words: str
) -> None:
    with serving({**GOOD, "POST /v1/chat/completions": refused}) as url:
        got, checks = looked(cli, "--base-url", url, "-m", MODEL, "--yes")
    assert (got, checks["probe"]["state"]) == (code, state)
    assert words in checks["probe"]["sentence"]
    assert checks["probe"]["next_step"]


def test_a_model_that_runs_on_a_dedicated_endpoint_is_told_with_its_price_an_hour(cli: Command) -> None:
    with simulating() as simulator:
        words = ("--base-url", simulator.url, "-m", "simulator/dedicated-only-70b")
        code, checks = looked(cli, *words)
        assert (code, checks["model"]["state"]) == (0, "warn")
        assert "$2.40 an hour" in checks["model"]["next_step"]
        code, checks = looked(cli, *words, "--yes")
    assert code == 9
    assert "$2.40 an hour" in checks["probe"]["next_step"]
    assert "$0" not in json.dumps(checks)


def test_a_model_that_is_not_listed_and_answers_is_only_a_warning(cli: Command) -> None:
    with serving({**GOOD, "POST /v1/chat/completions": saying(body={**REPLY, "model": "me/tuned"})}) as url:
        code, checks = looked(cli, "--base-url", url, "-m", "me/tuned", "--yes")
    assert (code, checks["model"]["state"], checks["probe"]["state"]) == (0, "warn", "ok")


def test_an_image_model_is_not_asked_for_text(cli: Command) -> None:
    with serving({**GOOD, "GET /v1/models": saying(body=[{"id": "a/flux", "type": "image"}])}) as url:
        code, checks = looked(cli, "--base-url", url, "-m", "a/flux", "--yes")
    assert (code, checks["model"]["state"], checks["probe"]["state"]) == (9, "bad", "skipped")


def test_a_server_without_a_model_list_is_a_warning_and_the_probe_still_tells(cli: Command) -> None:
    routes = {"POST /v1/chat/completions": GOOD["POST /v1/chat/completions"]}
    with serving(routes) as url:
        code, checks = looked(cli, "--base-url", url, "-m", MODEL, "--yes")
    assert code == 0
    assert states(checks, "key", "models", "model", "probe") == ["warn", "warn", "skipped", "ok"]


def test_a_server_that_wants_no_key_is_fine_without_one(cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOGETHER_API_KEY")
    with serving(GOOD) as url:
        code, checks = looked(cli, "--base-url", url)
    assert (code, checks["key"]["sentence"]) == (0, "The server takes calls without a key.")


def test_out_of_credits_at_the_first_call_is_exit_3(cli: Command) -> None:
    with serving({**GOOD, "GET /v3/whoami": saying(402, {"error": {"message": "Credit limit exceeded."}})}) as url:
        code, checks = looked(cli, "--base-url", url)
    assert (code, checks["key"]["sentence"]) == (3, "The account is out of credits.")


def test_a_folder_that_cannot_be_written_is_bad_and_nothing_is_left_behind(cli: Command, tmp_path: Path) -> None:
    with serving(GOOD) as url:
        code, checks = looked(cli, "--base-url", url, "--checkpoint", "/proc/no-such/c.db")
        assert (code, checks["folder"]["state"], checks["folder"]["exit_code"]) == (11, "bad", 11)
        code, checks = looked(cli, "--base-url", url, "--checkpoint", str(tmp_path / "a/b/c.db"))
    assert (code, checks["folder"]["state"]) == (2, "ok")
    assert "will be made" in checks["folder"]["sentence"]
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_cannot_be_read_or_was_named_and_is_not_there_is_bad(cli: Command, tmp_path: Path) -> None:
    (tmp_path / "no.db").write_text('{"prompt": "no database"}\n' * 100)
    sqlite3.connect(tmp_path / "other.db").executescript("create table t(a)").connection.close()
    (tmp_path / "folder").mkdir()
    seen = {}
    with serving(GOOD) as url:
        for name in ("no.db", "other.db", "gone.db", "folder"):
            code, checks = looked(cli, "--base-url", url, "--checkpoint", name)
            seen[name] = (code, checks["checkpoint"]["state"], checks["checkpoint"]["sentence"])
        code, checks = looked(cli, "--base-url", url)
    assert (code, checks["checkpoint"]["state"]) == (0, "skipped")
    assert seen == {
        "no.db": (11, "bad", "no.db: The checkpoint is not a SQLite file, or it is damaged."),
        "other.db": (11, "bad", "other.db: This file is not a batchrun checkpoint."),
        "gone.db": (2, "bad", f"There is no checkpoint at {tmp_path}/gone.db."),
        "folder": (0, "skipped", "There is none yet."),
    }


def test_a_checkpoint_that_can_be_read_is_fine(cli: Command, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n')
    assert cli("plan", "in.jsonl", "-m", MODEL, "--simulate", "--checkpoint", "c.db")[0] == 0
    with serving(GOOD) as url:
        code, checks = looked(cli, "--base-url", url, "--checkpoint", "c.db")
    assert (code, checks["checkpoint"]["sentence"]) == (0, "c.db can be read.")


@pytest.mark.parametrize("reply", [JUNK[11], saying(502, b"<html>Bad Gateway</html>")])
def test_a_server_in_trouble_is_told_as_such(cli: Command, reply: Any) -> None:
    with serving(dict.fromkeys(GOOD, reply)) as url:
        code, checks = looked(cli, "--base-url", url)
    assert (code, checks["key"]["state"]) == (5, "bad")
    assert "the server is in trouble (HTTP 50" in checks["key"]["sentence"]
    assert checks["key"]["next_step"] == "Try again later."


def test_a_network_file_system_is_refused_in_the_words_of_a_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(_: Path) -> None:
        raise StorageError("The checkpoint would lie on a network file system (nfs4).", "Name one on a local disk.")

    monkeypatch.setattr(machine, "refuse_network", refuse)
    found = machine.folder(str(tmp_path / "c.db"))
    assert (found.state, found.exit_code, found.next_step) == (State.BAD, 11, "Name one on a local disk.")


@pytest.mark.parametrize(("free", "state"), [(10**7, State.BAD), (5 * 10**8, State.WARN), (10**11, State.OK)])
def test_little_space_is_told_before_it_ends(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: int, state: State
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    found = machine.space(str(tmp_path / "c.db"))
    assert (found.state, found.exit_code) == (state, 11 if state is State.BAD else 0)


def test_few_open_files_are_a_warning_that_says_how_many_calls_that_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 256))
    found = machine.open_files()
    assert found.state is State.WARN
    assert "at most 192 calls at once instead of 512" in found.sentence


def test_a_package_that_is_missing_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "NEEDED", (*machine.NEEDED, "no-such-package-of-ours"))
    found = machine.versions()
    assert found.state is State.BAD
    assert "Not installed: no-such-package-of-ours." in found.sentence


@pytest.mark.parametrize(
    ("version", "has"),
    [("3.7.0", True), ("3.40.1", True), ("3.44.5", True), ("3.44.6", False), ("3.50.6", True), ("3.50.7", False),
     ("3.51.2", True), ("3.51.3", False), ("3.53.1", False), ("3.45.0", True), ("4.0.0", False)],
)  # fmt: skip
def test_which_sqlite_has_the_wal_reset_bug(version: str, has: bool) -> None:
    assert engine.has_wal_reset_bug(version) is has


@pytest.mark.parametrize(
    ("codes", "expected"), [((), 0), ((2,), 2), ((2, 5), 5), ((5, 9), 9), ((9, 4), 4), ((4, 3), 3), ((3, 11), 11)]
)
def test_of_several_bad_findings_the_worst_gives_the_exit_code(codes: tuple[int, ...], expected: int) -> None:
    others = [ok("a", "."), warn("b", ".", "."), skipped("c", ".")]
    assert exit_code([*others, *(bad("d", code, ".", ".") for code in codes)]) == expected


def test_a_check_that_breaks_is_told_without_its_message_and_hides_no_other() -> None:
    def breaks() -> Finding:
        raise RuntimeError("a prompt")

    found = guarded("disk", breaks)
    assert found.state is State.WARN
    assert "RuntimeError" in found.sentence
    assert "a prompt" not in repr(found)


def test_a_broken_check_does_not_stop_the_command(cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: object, **__: object) -> Finding:
        raise RuntimeError("a prompt")

    for name in ("versions", "folder", "checkpoint", "space", "open_files", "environment"):
        monkeypatch.setattr(machine, name, breaks)
    with serving(GOOD) as url:
        code, checks = looked(cli, "--base-url", url)
    assert code == 0
    assert states(checks, *NAMES[:8]) == ["warn"] * 6 + ["ok"] * 2


def test_doctor_works_where_its_own_folder_is_gone(cli: Command, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    with serving(GOOD) as url:
        code, out, _ = cli("doctor", "--base-url", url)
    assert code in {0, 11}
    assert "key" in out


@pytest.fixture(autouse=True)
def _home() -> Iterator[None]:
    here = Path.cwd()
    yield
    os.chdir(here)
