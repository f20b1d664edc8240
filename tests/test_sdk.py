"""The official client, in two generations, against the simulator's Files and Batch API: what it wants, it gets."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from batchrun.simulator import Settings, Simulator

pytestmark = pytest.mark.sdk

PATIENCE = 300  # seconds for an installation
VERSIONS = {"3.1.*": "", "2.42.0": "/v1"}  # what each wants at the end of its base address

SCRIPT = """
import json, sys, time
from together import Together

path = sys.argv[1]
client = Together(max_retries=0)

def ended(job_id):
    until = time.monotonic() + 30
    while time.monotonic() < until:
        job = client.batches.retrieve(job_id)
        if job.status in ("COMPLETED", "FAILED", "EXPIRED", "CANCELLED"):
            return job
        time.sleep(0.02)
    raise SystemExit(f"still {job}")

file = client.files.upload(file=path, purpose="batch-api")
again = client.files.upload(file=path, purpose="batch-api", check=False)
unchecked = client.files.upload(file=path + ".other.jsonl", purpose="batch-api", check=False)
first = client.batches.create(endpoint="/v1/chat/completions", input_file_id=file.id).job
done = ended(first.id)
second = client.batches.create(endpoint="/v1/chat/completions", input_file_id=unchecked.id).job
while client.batches.retrieve(second.id).progress == 0:
    pass
client.batches.cancel(second.id)
cancelled = ended(second.id)
contents = [client.files.content(name).read().decode() for name in (done.output_file_id, done.error_file_id)]
print(json.dumps({
    "file": [file.filename, file.bytes, client.files.retrieve(file.id).id == file.id],
    "same": again.id == file.id,
    "statuses": [done.status, cancelled.status],
    "progress": done.progress,
    "listed": sorted(job.id for job in client.batches.list()) == sorted([first.id, second.id]),
    "output": [json.loads(line) for line in contents[0].splitlines()],
    "errors": [json.loads(line) for line in contents[1].splitlines()],
    "deleted": client.files.delete(file.id).id == file.id,
    "left": len(client.files.list().data),
}))
"""


@pytest.fixture(scope="module", params=VERSIONS)
def sdk(request, tmp_path_factory):
    """A Python that has the client of this version, and how its base address ends."""
    folder = tmp_path_factory.mktemp("sdk")
    python = folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, capture_output=True, timeout=PATIENCE)
    pip = [python, "-m", "pip", "install", "--quiet", f"together=={request.param}"]
    done = subprocess.run(pip, check=False, capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode:
        pytest.skip(f"together {request.param} cannot be installed: {done.stderr.strip()[-200:]}")
    return python, request.param


def lines(count: int, *models: str) -> str:
    named = ["openai/gpt-oss-20b"] * count + list(models)
    bodies = [{"model": model, "messages": [{"role": "user", "content": f"q{i}"}]} for i, model in enumerate(named)]
    return "".join(json.dumps({"custom_id": f"c{i}", "body": body}) + "\n" for i, body in enumerate(bodies))


async def use(python: Path, version: str, url: str, path: Path) -> dict[str, object]:
    """Run the script in the client's own Python."""
    keys = {"TOGETHER_API_KEY": "any", "TOGETHER_BASE_URL": url + VERSIONS[version]}
    process = await asyncio.create_subprocess_exec(
        python,
        "-c",
        SCRIPT,
        str(path),
        stdin=subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={word: value for word, value in os.environ.items() if not word.startswith("TOGETHER")} | keys,
    )
    async with asyncio.timeout(60):
        said, complained = await process.communicate()
    assert process.returncode == 0, complained.decode()[-3000:]
    return json.loads(said.splitlines()[-1])


async def test_the_official_client_goes_all_the_way(sdk, tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text(lines(20, "nobody/knows"))
    (tmp_path / "in.jsonl.other.jsonl").write_text(lines(5_000))
    async with Simulator(Settings(latency=0.0, batch_speed=200.0)) as simulator:
        told = await use(*sdk, simulator.url, path)
        charges = [charge for charge in simulator.account.charges if charge.batch == simulator.batches.jobs[0].id]
        requests = simulator.batches.requests
    assert told["file"] == ["in.jsonl", path.stat().st_size, True]
    assert told["statuses"] == ["COMPLETED", "CANCELLED"]
    assert (told["same"], told["progress"], told["listed"], told["deleted"]) == (True, 100, True, True)
    assert sorted(record["custom_id"] for record in told["output"]) == sorted(f"c{i}" for i in range(20))
    assert {record["response"]["body"]["choices"][0]["finish_reason"] for record in told["output"]} == {"stop"}
    assert [record["error"]["code"] for record in told["errors"]] == ["invalid_model"]
    assert len(charges) == 20
    assert told["left"] == 4  # one of the uploads, the two results of the first job, and the output of the second
    assert (requests["upload_init"], requests["put"], requests["preprocess"]) == (3, 2, 2)
