"""The options of a job, declared once for `run`, `resume`, `plan`, `preview` and `check`; `words` reads what was typed.

An option that was not given is None, so that what it overrides (a stored job, a default) stays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from batchrun.cli import joboption
from batchrun.records import Endpoint, Route

F = TypeVar("F", bound=Callable[..., Any])


def _options(*declared: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(command: F) -> F:
        for option in reversed(declared):
            command = option(command)
        return command

    return decorate


job_options = _options(
    click.argument("inputs", nargs=-1, metavar="INPUT...", callback=joboption.inputs),
    click.option(
        "--job",
        metavar="FILE.toml",
        is_eager=True,
        expose_value=False,
        callback=joboption.read,
        help="Options from a file, INPUT as `input`; what is typed wins. Its paths start at its folder.",
    ),
    joboption.finished,
)

asking_options = _options(
    click.option("-m", "--model", metavar="MODEL", help="The model, unless every row names its own."),
    click.option(
        "--endpoint", type=click.Choice([e.value for e in Endpoint]), help="Chat (the default) or completions."
    ),
    click.option("--template", metavar="FILE", help="Jinja2 file that builds each prompt from the columns."),
    click.option("--system", metavar="TEXT", help="A system message before every prompt."),
    click.option("--max-tokens", type=int, metavar="N", help="The most tokens an answer may have."),
    click.option("--temperature", type=float, metavar="T", help="Sampling temperature."),
    click.option("--param", multiple=True, metavar="KEY=JSON", help="Any other parameter, such as top_p=0.9."),
    click.option("--schema", metavar="FILE", help="JSON Schema that every answer shall fit."),
)

limit_options = _options(
    click.option("-o", "--output", metavar="FILE", help="Where the answers go: .parquet or .jsonl."),
    click.option(
        "--route", type=click.Choice([r.value for r in Route]), help="auto (the default): whichever is right."
    ),
    click.option("--deadline", metavar="TIME", help="Be done by 06:30, 2026-12-24 06:30, or in 8h; none: no more."),
    click.option("--batch-lines", type=int, metavar="N", help="Rows in a batch at most (10000)."),
    click.option("--batch-jobs", type=int, metavar="N", help="Batches at the provider at most (50)."),
    click.option("--batch-poll", type=float, metavar="S", help="Seconds between looks at batches (30)."),
    click.option("--batch-grace", type=float, metavar="S", help="Unlisted for so long: not created (600)."),
    click.option("--batch-patience", type=float, metavar="S", help="Take a batch back after so long (259200)."),
    click.option("--batch-discount", multiple=True, metavar="MODEL=F", help="Batches cost F of the price: 0.5."),
    click.option("--delete-remote", is_flag=True, default=None, help="Remove a collected batch's files there."),
    click.option("--fallback", multiple=True, metavar="MODEL", help="Stands in for a missing or overloaded model."),
    click.option("--on-too-long", metavar="HOW", help="reject, truncate[:head|middle|tail], shrink-output, fallback."),
    click.option("--on-length", metavar="HOW", help="Cut-off answers: keep (default) or retry[:N], with more tokens."),
    click.option("--on-invalid", metavar="HOW", help="Answers against --schema: keep (default) or retry[:N]."),
    click.option("--concurrency", type=int, metavar="N", help="Calls in flight at most; else found out."),
    click.option("--rpm", type=float, metavar="N", help="Requests per minute at most, for each model."),
    click.option("--tpm", type=float, metavar="N", help="Tokens per minute at most, for each model."),
    click.option("--max-cost", type=float, metavar="USD", help="Never spend more over the checkpoint's life."),
    click.option("--max-cost-run", type=float, metavar="USD", help="Never commit more than this in one start."),
    click.option(
        "--price", multiple=True, metavar="MODEL=IN/OUT", help="US dollars per million tokens; IN/OUT/CACHED."
    ),
    click.option("--wait-for-credits", is_flag=True, default=None, help="Out of credits: wait for the top-up."),
    click.option("--overload-patience", type=float, metavar="S", help="Park after so long without answer (900)."),
    click.option("--max-rejected", metavar="N|P%", help="So many rejected rows still exit 0."),
    click.option("--connect-timeout", type=float, metavar="S", help="Seconds to connect (30)."),
    click.option("--first-byte-timeout", type=float, metavar="S", help="Seconds to the first byte (3600)."),
    click.option("--idle-timeout", type=float, metavar="S", help="Seconds between two bytes (300)."),
    click.option("--total-timeout", type=float, metavar="S", help="Seconds for one call in all (7200)."),
)

run_options = _options(
    click.option("--checkpoint", metavar="FILE", help="Default: in checkpoints/, named after INPUT or the job file."),
    click.option("--base-url", metavar="URL", help="Another server; or TOGETHER_BASE_URL."),
    click.option("--key-env", metavar="NAME", help="Variable with the key (TOGETHER_API_KEY)."),
    click.option("--insecure-http", is_flag=True, help="Allow plain http to another machine."),
    click.option("--skip-bad-rows", is_flag=True, help="Bad rows become rejections instead of exit 2."),
    click.option("--dedupe", is_flag=True, help="Identical rows share one answer."),
    click.option("--simulate", is_flag=True, help="Answer with the built-in simulator, without a key."),
)

start_options = _options(
    click.option("--new-requests", is_flag=True, help="Ask anew although answers would go unused."),
    click.option("--retry-rejected", is_flag=True, help="Send rejected rows again."),
    click.option("--detach", is_flag=True, help="Leave running batches (exit 7); a later start collects them."),
    click.option("--accept-loss", is_flag=True, help="Go on although kept answers were lost."),
    click.option("--credits", type=float, metavar="USD", help="With --simulate: credits bought in all."),
    click.option("--script", metavar="FILE.toml", help="With --simulate: settings and faults to play."),
    click.option(
        "--progress",
        type=click.Choice(["auto", "bar", "json", "none"]),
        default="auto",
        show_default=True,
        help="A bar on a terminal, JSON lines on stdout, or nothing.",
    ),
    click.option(
        "--log",
        type=click.Choice(["auto", "text", "json", "none"]),
        default="auto",
        show_default=True,
        envvar="BATCHRUN_LOG",
        help="Events on stderr; auto: none on a terminal, else JSON lines.",
    ),
    click.option(
        "--notify", multiple=True, metavar="URL", envvar="BATCHRUN_NOTIFY", help="POST to it on end, park, recovery."
    ),
    click.option("--confirm-above", metavar="USD", help="On a terminal, ask before more may be spent (10); none."),
    click.option("--yes", is_flag=True, help="Do not ask."),
    click.option("--metrics-port", type=click.IntRange(0, 65535), metavar="N", help="Prometheus on 127.0.0.1; 0: any."),
    click.option("--metrics-file", metavar="FILE.prom", help="Metrics for node_exporter, every 15 seconds."),
)
