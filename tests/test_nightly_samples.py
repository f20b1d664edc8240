"""`samples/nightly`, all of it used: the job file run, units verified, script and crontab line with every code."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from support import read_rows, write_prompts

from batchrun.cli import jobfile
from batchrun.cli.main import batchrun
from batchrun.cli.run import run
from batchrun.cli.words import confirm_above
from batchrun.faces.figures import FAMILIES
from batchrun.job import Job

ROOT = Path(__file__).parent.parent
NIGHTLY = ROOT / "samples" / "nightly"
JOB = (NIGHTLY / "nightly.toml").read_text(encoding="utf-8")
KEYS = jobfile.keys(run)
BATCHRUN = (sys.executable, "-m", "batchrun")

# The codes of README's table: what a night may end with.
CODES = {
    int(code)
    for row in re.findall(r"^\| ([\d, ]+) \|", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    for code in row.split(",")
}


def test_the_table_of_codes_was_found() -> None:
    assert {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 130, 143} <= CODES


# nightly.toml

_LINE = re.compile(r"^#(?P<line>(?:\[|\"|[a-z]).*)$")  # a comment has a space behind its #


def left_out() -> list[str]:
    """What is commented out: lines, and tables with all their lines."""
    found: list[str] = []
    for line in JOB.splitlines():
        match = _LINE.match(line)
        if match and found and found[-1].startswith("["):
            found[-1] += "\n" + match["line"] if not match["line"].startswith("[") else ""
            found += [match["line"]] if match["line"].startswith("[") else []
        elif match:
            found.append(match["line"])
    return found


def keys_of(text: str) -> list[str]:
    return list(tomllib.loads(text))


def test_every_option_is_a_key_of_the_sample_and_stands_in_it_once() -> None:
    active = keys_of(JOB)
    named = [*active, *(key for line in left_out() for key in keys_of(line))]
    assert sorted(named) == sorted(KEYS)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The samples copied to a folder of one's own, with what the lines that are left out name."""
    shutil.copytree(NIGHTLY, tmp_path / "nightly")
    for name, text in {
        "template.j2": "{{ prompt }}",
        "schema.json": "{}",
        "script.toml": "[server]\nlatency = 0.0\n",
    }.items():
        (tmp_path / "nightly" / name).write_text(text)
    (tmp_path / "nightly/prompts").mkdir()
    write_prompts(tmp_path / "nightly/prompts/monday.jsonl", range(12))
    for name in list(os.environ):
        if name.startswith(("BATCHRUN", "TOGETHER")):
            monkeypatch.delenv(name)
    return tmp_path / "nightly"


def read(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Job, dict[str, Any]]:
    told: list[tuple[Any, ...]] = []
    monkeypatch.setattr("batchrun.cli.run._start", lambda *words: told.append(words))
    done = CliRunner().invoke(batchrun, ["run", "--job", str(path)])
    assert done.exception is None, done.exception
    return told[0][0], dict(told[0][1])


# What is left out shows an example, since there is no default.
EXAMPLES = {
    "temperature", "system", "template", "schema", "deadline", "concurrency", "rpm", "tpm", "fallback", "notify",
    "metrics-file", "metrics-port", "script", "credits", "param", "price", "batch-discount",
}  # fmt: skip


@pytest.mark.parametrize("line", left_out(), ids=lambda line: keys_of(line)[0])
def test_a_line_that_is_left_out_is_right_and_says_the_default(
    line: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOGETHER_API_KEY", "any")
    path, key = folder / "nightly.toml", keys_of(line)[0]
    job, given = read(path, monkeypatch)
    path.write_text(JOB.replace("\n#" + line.replace("\n", "\n#"), "\n" + line))
    assert path.read_text() != JOB
    changed, said = read(path, monkeypatch)
    if key in EXAMPLES:
        assert (changed, said) != (job, given)
        return
    assert changed == job
    name = str(KEYS[key].name)
    before, after = given.pop(name), said.pop(name)
    assert said == given
    if key == "confirm-above":  # neither in the job nor a default of the option
        before, after = confirm_above(before), confirm_above(after)
        assert before is not None
    assert after == before or before is None or not (after or before)


def test_all_lines_that_are_left_out_fit_together(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOGETHER_API_KEY", "any")
    text = re.sub(r"^#(?=\[|\"|[a-z])", "", JOB, flags=re.MULTILINE)
    (folder / "nightly.toml").write_text(text)
    assert sorted(keys_of(text)) == sorted(KEYS)
    read(folder / "nightly.toml", monkeypatch)


def start(*words: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=120,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_the_job_runs_on_the_simulator_and_grows_by_what_is_new(folder: Path, tmp_path: Path) -> None:
    words = (
        *BATCHRUN, "run", "--job", str(folder / "nightly.toml"), "--simulate", "--progress", "json",
        "--concurrency", "8", "--script", str(folder / "script.toml"), "-o", str(tmp_path / "out.jsonl"),
    )  # fmt: skip

    def paid() -> tuple[int, Any]:
        done = start(*words, folder=tmp_path, BATCHRUN_NIGHT="0.5")
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout.splitlines()[-1])
        assert report["event"] == "report"
        return len(read_rows(tmp_path / "out.jsonl")), report["answered_now"]

    assert paid() == (12, 12)
    assert paid() == (12, 0)
    write_prompts(folder / "prompts/tuesday.jsonl", range(12, 16))
    assert paid() == (16, 4)
    (folder / "prompts/monday.jsonl").unlink()
    write_prompts(folder / "prompts/tuesday.jsonl", range(20))  # with last night's rows
    assert paid() == (20, 4)
    status = start(*BATCHRUN, "status", "--json", str(folder / "nightly.toml"), folder=tmp_path)
    assert json.loads(status.stdout)["checkpoint"] == str(folder / "checkpoints/nightly.sim.db")


@pytest.mark.soak
def test_what_the_page_says_to_try_first_works(tmp_path: Path) -> None:
    page = (NIGHTLY / "README.md").read_text(encoding="utf-8")
    commands = page.partition("```sh\n")[2].partition("```")[0]
    (tmp_path / "bin").mkdir()
    write_command(tmp_path / "bin/batchrun", f'exec "{sys.executable}" -m batchrun "$@"')
    done = start("sh", "-ec", commands, folder=ROOT, HOME=str(tmp_path), PATH=f"{tmp_path}/bin:{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    assert "Rows: 200 answered" in done.stdout


# nightly.sh


def write_command(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def fake(folder: Path, *codes: int) -> Path:
    """A `batchrun` that writes down how it was called, and ends with these codes one after the other, then the last."""
    (folder / "codes").write_text("\n".join(map(str, codes)) + "\n")
    return write_command(
        folder / "bin/batchrun",
        f"""cd "{folder}"
        echo "$@" >>calls
        code=$(head -n 1 codes)
        [ "$(wc -l <codes)" -le 1 ] || sed -i 1d codes
        if [ "$code" -eq 137 ]; then kill -KILL $$; fi
        exit "$code" """,
    )


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines()


def night(folder: Path, *codes: int, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{fake(folder, *codes).parent}:{os.environ['PATH']}"
    return start("sh", str(folder / "nightly.sh"), "my job.toml", folder=folder, PATH=path, PAUSE="0", **environment)


# The code of each start (the last one goes on): the script's own code, how many starts, and what a person is told.
NIGHTS: dict[tuple[int, ...], tuple[int, int, str]] = {
    (0,): (0, 1, ""),
    (8,): (0, 1, ""),
    (130,): (130, 1, ""),
    (143,): (143, 1, ""),
    (1,): (1, 1, "a bug in batchrun"),
    (2,): (2, 1, "usage, job file, input or key"),
    (3,): (3, 1, "out of credits: top up"),
    (4,): (4, 1, "the key was refused"),
    (6,): (6, 1, "the budget is used up or the deadline has passed: raise max-cost in the job file"),
    (9,): (9, 1, "no such model"),
    (10,): (10, 1, "more rows are rejected than allowed: batchrun errors my job.toml"),
    (11,): (11, 1, "cannot be written or trusted"),
    (99,): (99, 1, "something nobody thought of"),
    (5,): (5, 5, "overloaded or cannot be reached, after 5 starts; the next night goes on"),
    (7,): (0, 5, ""),
    (137,): (137, 5, "the run was killed"),
    (5, 5, 0): (0, 3, ""),
    (7, 0): (0, 2, ""),
    (137, 0): (0, 2, ""),
    (5, 7, 8): (0, 3, ""),
    (5, 3): (3, 2, "out of credits: top up"),
}


def test_the_script_knows_every_code_of_the_readme() -> None:
    assert {codes[0] for codes in NIGHTS} >= CODES


@pytest.mark.parametrize("codes", NIGHTS, ids=str)
def test_the_script_acts_on_each_code(codes: tuple[int, ...], folder: Path) -> None:
    code, starts, told = NIGHTS[codes]
    done = night(folder, *codes)
    assert (done.returncode, done.stdout) == (code, "")
    assert calls(folder) == ["run --job my job.toml"] * starts
    if told:
        assert told in done.stderr
        assert re.fullmatch(rf"my job\.toml: .+ \(exit {code}\)\n", done.stderr.replace("Killed\n", ""))
    else:
        assert done.stderr.replace("Killed\n", "") == ""


def test_the_script_tells_somebody_by_the_command_it_is_given(folder: Path) -> None:
    alert = write_command(folder / "alert", f'echo "$#: $1" >"{folder}/told"')
    assert night(folder, 3, ALERT_COMMAND=str(alert)).returncode == 3
    assert (
        folder / "told"
    ).read_text() == "1: my job.toml: out of credits: top up, and the next night goes on (exit 3)\n"
    assert night(folder, 0, ALERT_COMMAND=str(folder / "none")).returncode == 0
    failed = night(folder, 3, ALERT_COMMAND=str(folder / "none"))
    assert (failed.returncode, "ALERT_COMMAND failed" in failed.stderr) == (3, True)


def test_the_script_says_when_there_is_no_batchrun(folder: Path) -> None:
    done = start("sh", str(folder / "nightly.sh"), folder=folder, BATCHRUN=str(folder / "none"))
    assert done.returncode == 127
    assert "cannot be started (exit 127)" in done.stderr


def test_the_script_starts_the_real_one(folder: Path) -> None:
    command = f'exec "{sys.executable}" -m batchrun "$@" --simulate --script script.toml --concurrency 8 -o out.jsonl'
    real = write_command(folder / "bin/real", command)
    done = start("sh", "nightly.sh", folder=folder, BATCHRUN=str(real))
    assert (done.returncode, len(read_rows(folder / "out.jsonl"))) == (0, 12)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_script_that_is_stopped_tells_the_run_and_waits_for_it(number: signal.Signals, folder: Path) -> None:
    os.mkfifo(folder / "ready")
    run_ = write_command(
        folder / "run",
        f"trap 'echo told >>\"{folder}/calls\"; kill $!; exit 77' TERM\n"
        f'sleep 60 </dev/null >/dev/null 2>&1 & echo ready >"{folder}/ready"; wait',
    )
    stopped(folder, number, 77, BATCHRUN=str(run_))
    assert calls(folder) == ["told"]


def test_a_script_that_is_stopped_between_two_starts_ends_with_the_code_of_the_last(folder: Path) -> None:
    os.mkfifo(folder / "ready")
    write_command(folder / "bin/sleep", f'echo ready >"{folder}/ready"; exec "{shutil.which("sleep")}" 60')
    stopped(folder, signal.SIGTERM, 5, PATH=f"{fake(folder, 5).parent}:{os.environ['PATH']}")
    assert calls(folder) == ["run --job nightly.toml"]


def stopped(folder: Path, number: signal.Signals, code: int, **environment: str) -> None:
    """The script, stopped when something it started wrote into `ready`."""
    with subprocess.Popen(
        ["sh", "nightly.sh"], cwd=folder, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True,
    ) as script:  # fmt: skip
        with (folder / "ready").open() as ready:
            assert ready.read() == "ready\n"
        script.send_signal(number)
        assert script.stderr is not None
        assert script.stderr.read() in {"", "Terminated\n"}
        assert script.wait(60) == code


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not here")
def test_shellcheck_finds_nothing_in_the_script() -> None:
    done = start("shellcheck", "--shell=sh", str(NIGHTLY / "nightly.sh"), folder=ROOT)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_script_may_be_started_as_it_is() -> None:
    assert os.access(NIGHTLY / "nightly.sh", os.X_OK)


# crontab


def cron_line(*, script: bool = False) -> tuple[list[str], str]:
    """The five fields of time, and the command as cron hands it to the shell; that of the script is left out there."""
    begins = "#0" if script else "0"
    lines = [line for line in (NIGHTLY / "crontab").read_text().splitlines() if re.match(r"[^#]|#\d", line)]
    assert len(lines) == 2
    (line,) = (line for line in lines if line.startswith(begins))
    *fields, command = line.removeprefix("#").split(maxsplit=5)
    assert not re.search(r"(?<!\\)%", command), "cron makes a new line of a percent sign"
    return fields, command.replace("\\%", "%")


@pytest.mark.parametrize("script", [False, True])
def test_the_crontab_line_has_five_fields_of_time(script: bool) -> None:
    fields, _ = cron_line(script=script)
    for field, (low, high) in zip(fields, [(0, 59), (0, 23), (1, 31), (1, 12), (0, 7)], strict=True):
        assert field == "*" or low <= int(field) <= high


@pytest.mark.parametrize("code", sorted(CODES))
def test_the_crontab_line_starts_the_job_and_says_when_somebody_should_look(code: int, folder: Path) -> None:
    write_command(
        folder / ".local/bin/batchrun",
        f'echo "$TOGETHER_API_KEY_FILE $@" >"{folder}/calls"; echo out; echo err >&2; exit {code}',
    )
    (folder / "nightly").mkdir()
    done = start("/bin/sh", "-c", cron_line()[1], folder=Path("/"), HOME=str(folder))
    assert calls(folder) == [f"{folder}/.config/batchrun/key run --job {folder}/nightly/nightly.toml"]
    assert (folder / "nightly/nightly.log").read_text() == "out\nerr\n"
    said = "" if code in {0, 7, 8} else f"batchrun ended with exit code {code}, see {folder}/nightly/nightly.log\n"
    assert (done.stdout, done.stderr) == (said, "")


def under_cron(command: str, home: Path) -> subprocess.CompletedProcess[str]:
    """What cron starts: https://man7.org/linux/man-pages/man5/crontab.5.html, a PATH of two folders and hardly more."""
    return start("env", "-i", f"HOME={home}", "PATH=/usr/bin:/bin", "/bin/sh", "-c", command, folder=home)


# The code of batchrun, the script's own, and what is mailed.
@pytest.mark.parametrize(
    ("code", "own", "mailed"),
    [(0, 0, ""), (8, 0, ""), (3, 3, "out of credits: top up, and the next night goes on (exit 3)\n")],
)
def test_the_crontab_line_of_the_script_finds_the_command_and_mails_what_a_person_should_do(
    code: int, own: int, mailed: str, folder: Path
) -> None:
    home = folder.parent
    write_command(
        home / ".local/bin/batchrun",
        f'echo "$TOGETHER_API_KEY_FILE $@" >"{folder}/calls"; echo a line >&2; exit {code}',
    )
    done = under_cron(cron_line(script=True)[1], home)
    assert calls(folder) == [f"{home}/.config/batchrun/key run --job {home}/nightly/nightly.toml"]
    assert (done.stdout, done.stderr) == (f"{home}/nightly/nightly.toml: {mailed}" if mailed else "", "")
    assert f"(exit {own})" in (home / "nightly/nightly.log").read_text() or own == 0


def test_the_crontab_line_works_with_what_cron_knows(folder: Path) -> None:
    write_command(folder.parent / ".local/bin/batchrun", f'echo "$@" >"{folder}/calls"')
    done = under_cron(cron_line()[1], folder.parent)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert calls(folder) == [f"run --job {folder}/nightly.toml"]


# Prometheus


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((NIGHTLY / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    return list(group["rules"])


def test_the_alerts_ask_for_metrics_that_there_are() -> None:
    known = {family.name: {"checkpoint", *family.labels} for family in FAMILIES}
    for rule in rules():
        names = re.findall(r"\b(batchrun_\w+)(?:\{(\w+)=)?", rule["expr"])
        assert names, rule["alert"]
        for name, label in names:
            assert name in known, rule["alert"]
            assert not label or label in known[name]


def test_the_alert_of_a_run_that_vanished_looks_at_the_file_of_the_job() -> None:
    (path,) = (tomllib.loads(line)["metrics-file"] for line in left_out() if line.startswith("metrics-file"))
    (pattern,) = (found for rule in rules() for found in re.findall(r'file=~"(.+?)"', rule["expr"]))
    assert re.fullmatch(pattern, path)  # Prometheus matches whole values
    assert Path(path).parent == Path(unit_left_out("ReadWritePaths"))


def unit_left_out(key: str) -> str:
    (value,) = re.findall(rf"^#{key}=(.+)$", (NIGHTLY / "batchrun-nightly.service").read_text(), re.MULTILINE)
    return str(value)


def test_a_night_on_a_terminal_asks_nobody() -> None:
    assert tomllib.loads(JOB)["yes"] is True


# systemd


def unit(name: str) -> dict[str, list[str]]:
    """The settings of a unit, each with all its values."""
    found: dict[str, list[str]] = {}
    for line in (NIGHTLY / name).read_text().splitlines():
        if line and line[0] not in "#[":
            key, equals, value = line.partition("=")
            assert equals, line
            found.setdefault(key, []).append(value)
    return found


def test_the_service_knows_every_code_of_the_readme_once() -> None:
    service = unit("batchrun-nightly.service")
    success, never = (
        set(map(int, service[key][0].split())) for key in ("SuccessExitStatus", "RestartPreventExitStatus")
    )
    assert success == {7, 8, 143}
    assert not success & never
    assert CODES - success - never == {0, 5, 130}  # 130 would be a SIGINT, which nobody sends to a service
    assert service["ExecStart"][0].endswith("/batchrun run --job nightly.toml")
    assert service["WorkingDirectory"] == [f"%S/{service['StateDirectory'][0]}"]


def test_the_service_gives_the_key_as_a_file() -> None:
    service = unit("batchrun-nightly.service")
    name, _, path = service["LoadCredential"][0].partition(":")
    assert path.startswith("/etc/")
    assert service["Environment"] == [f"TOGETHER_API_KEY_FILE=%d/{name}"]


HAS_SYSTEMD = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not here")


@HAS_SYSTEMD
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    command = write_command(tmp_path / "batchrun", "exit 0")
    units = [tmp_path / f"batchrun-nightly.{kind}" for kind in ("service", "timer")]
    for path in units:
        path.write_text((NIGHTLY / path.name).read_text().replace("/usr/local/bin/batchrun", str(command)))
    done = start("systemd-analyze", "verify", "--man=no", *map(str, units), folder=tmp_path)
    own = [line for line in done.stderr.splitlines() if "batchrun" in line]  # the machine's own units may have faults
    assert (done.returncode, own) == (0, [])
    units[0].write_text(units[0].read_text().replace("RestartSec=", "RestartSecs="))
    assert "RestartSecs" in start("systemd-analyze", "verify", "--man=no", str(units[0]), folder=tmp_path).stderr


@HAS_SYSTEMD
def test_systemd_knows_when_the_timer_elapses(tmp_path: Path) -> None:
    timer = unit("batchrun-nightly.timer")
    done = start("systemd-analyze", "calendar", timer["OnCalendar"][0], folder=tmp_path)
    assert (done.returncode, "02:00:00" in done.stdout) == (0, True)
    for span in (timer["RandomizedDelaySec"][0], unit("batchrun-nightly.service")["TimeoutStartSec"][0]):
        assert start("systemd-analyze", "timespan", span, folder=tmp_path).returncode == 0
    assert timer["Persistent"] == ["true"]


# Kubernetes


def cron_job() -> tuple[dict[str, Any], dict[str, Any]]:
    claim, job = yaml.safe_load_all((NIGHTLY / "cronjob.yaml").read_text(encoding="utf-8"))
    return claim, job


def test_the_cron_job_starts_one_pod_at_a_time_and_leaves_retries_to_the_script() -> None:
    _, job = cron_job()
    spec, one = job["spec"], job["spec"]["jobTemplate"]["spec"]
    assert (job["apiVersion"], job["kind"], spec["concurrencyPolicy"]) == ("batch/v1", "CronJob", "Forbid")
    assert (one["backoffLimit"], one["template"]["spec"]["restartPolicy"]) == (0, "Never")
    assert len(spec["schedule"].split()) == 5
    assert one["activeDeadlineSeconds"] < 24 * 3600


def test_what_the_pod_mounts_is_there_under_the_names_the_page_gives() -> None:
    claim, job = cron_job()
    page = (NIGHTLY / "README.md").read_text(encoding="utf-8")
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert {mount["name"] for mount in mounts.values()} == set(volumes)
    assert volumes["data"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert f"secret generic {volumes['key']['secret']['secretName']} --from-file=api-key=" in page
    assert volumes["key"]["secret"]["defaultMode"] == 0o440  # YAML reads it as octal, as Kubernetes does
    assert f"configmap {volumes['job']['configMap']['name']} --from-file=nightly.toml --from-file=nightly.sh" in page
    assert f"cronjob/{job['metadata']['name']} " in page
    assert container["command"] == ["sh", "/data/nightly.sh", "/data/nightly.toml"]
    assert all(mounts[path]["subPath"] == Path(path).name for path in container["command"][1:])
    (variable,) = container["env"]
    assert variable == {"name": "TOGETHER_API_KEY_FILE", "value": f"{mount_of('key', mounts)}/api-key"}


def mount_of(volume: str, mounts: dict[str, Any]) -> str:
    return next(path for path, mount in mounts.items() if mount["name"] == volume)


def test_the_pod_is_nobody_and_may_nothing() -> None:
    pod = cron_job()[1]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    may = pod["containers"][0]["securityContext"]
    assert (pod["securityContext"]["runAsNonRoot"], pod["automountServiceAccountToken"]) == (True, False)
    assert may == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not here")
def test_kubernetes_knows_every_field_of_the_cron_job(tmp_path: Path) -> None:
    """A local `set image` reads the object as Kubernetes' own types, which drop what they do not know."""
    _, job = cron_job()
    (tmp_path / "job.json").write_text(json.dumps(job))
    words = ("set", "image", "--local", "-f", "job.json", "batchrun=another", "-o", "json")
    done = start("kubectl", *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["image"] = "another"
    assert missing(job, json.loads(done.stdout)) == []


def missing(asked: Any, known: Any, place: str = "") -> list[str]:
    if isinstance(asked, dict):
        return [
            at for key, value in asked.items() for at in missing(value, (known or {}).get(key), f"{place}.{key}")
        ]  # fmt: skip
    if isinstance(asked, list):
        return [at for index, value in enumerate(asked) for at in missing(value, known[index], f"{place}[{index}]")]
    return [] if asked == known else [place]
