"""One generation request from arrival to reply. Credits, limits, faults and text are decided by their own modules."""

import asyncio
import contextlib
import dataclasses
import math
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256

from aiohttp import web

from batchrun.simulator import errors, misbehave, replies
from batchrun.simulator.account import Account, Charge
from batchrun.simulator.asks import Ask, Endpoint, model_named, parse
from batchrun.simulator.errors import Refusal
from batchrun.simulator.faults import IN_BATCHES, Fault, Moment, Script
from batchrun.simulator.limits import Limits, Turned
from batchrun.simulator.misbehave import Sent
from batchrun.simulator.refusals import refusal_of
from batchrun.simulator.settings import Headers, Settings

_NO_HEADERS: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class _Job:
    """A request that is let in."""

    ask: Ask
    body: bytes
    fault: Fault | None


class Generation:
    """The two endpoints that generate, over one account."""

    def __init__(self, settings: Settings, account: Account) -> None:
        self.account = account
        self.gate = asyncio.Event()  # cleared while held
        self.gate.set()
        self._settings = settings
        self._limits: dict[str, Limits] = {}
        self._generating = 0
        self._slots = contextlib.nullcontext() if settings.slots is None else asyncio.Semaphore(settings.slots)
        self._dice = random.Random(f"latency {settings.seed}")
        self._keys = frozenset(settings.refused_keys)
        self._begin(Script(settings.faults, settings.seed, account.answers_at_top_up))

    def play(self, faults: Iterable[Fault]) -> None:
        """Replace the faults. Their numbers and times count from now."""
        self._begin(Script(faults, self._settings.seed))

    def top_up(self, usd: float) -> None:
        """Add credits, and end a `credits_end`."""
        self._script.top_up(self._moment())
        self.account.top_up(usd)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/chat/completions."""
        return await self._serve(request, Endpoint.CHAT)

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/completions."""
        return await self._serve(request, Endpoint.COMPLETIONS)

    def key_refusal(self, request: web.BaseRequest) -> Refusal | None:
        """401 for a request without a key, or with one that is refused on purpose."""
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        good = scheme.lower() == "bearer" and key.strip() and key.strip() not in self._keys
        return None if good else errors.NO_KEY

    def credits_ended(self) -> bool:
        """Whether nothing more may be charged."""
        return self.account.exhausted or self._script.credits_ended(self._moment())

    def line_fault(self, ask: Ask) -> Fault | None:
        """What strikes this line of a batch: the same script, of the kinds that can be had in a file."""
        self._lines += 1
        if not len(self._script):
            return None
        moment = dataclasses.replace(self._moment(ask), number=self._lines)
        return self._script.pick(moment, IN_BATCHES)

    def _begin(self, script: Script) -> None:
        self._script = script
        self._script_began = (self.account.requests, time.monotonic())
        self._lines = 0  # of batches, since then

    async def _serve(self, request: web.Request, endpoint: Endpoint) -> web.StreamResponse:
        body = await request.read()
        self.account.arrive(model_named(body))
        status = misbehave.NO_STATUS
        try:
            decided = self._decide(request, body, endpoint)
            sent = await (
                self._refuse(request, decided) if isinstance(decided, Refusal) else self._run(request, decided)
            )
            status = sent.status
        finally:
            self.account.leave(status)
        return sent.response

    def _decide(self, request: web.Request, body: bytes, endpoint: Endpoint) -> _Job | Refusal:
        """Let the request in, or say why not: key, request, credits, limits, fault.

        Nothing here waits, so requests are judged in the order they arrive.
        """
        refusal = self.key_refusal(request)
        if refusal is not None:
            return refusal
        ask = parse(endpoint, body, self._settings.context_status, self._settings.context_words)
        if isinstance(ask, Refusal):
            return ask
        if self.account.exhausted:
            return errors.NO_CREDITS
        turned = self._limits_of(ask.model.id).admit(self._generating, time.monotonic())
        if turned is not None:
            return self._turned(turned, ask.model.id)
        fault = self._script.pick(self._moment(ask)) if len(self._script) else None
        refusal = None if fault is None else refusal_of(fault, ask)
        return refusal or _Job(ask, body, fault)

    async def _refuse(self, request: web.Request, refusal: Refusal) -> Sent:
        if self._settings.refusal_latency:
            await asyncio.sleep(self._settings.refusal_latency)
        if refusal.status == errors.NO_CREDITS.status:
            self.account.refused_credits()
        headers = {"Content-Type": misbehave.JSON, **self._headers(""), **refusal.headers}
        body = refusal.payload(self._request_id())
        return await misbehave.send(request, web.Response(body=body, status=refusal.status, headers=headers))

    async def _run(self, request: web.Request, job: _Job) -> Sent:
        """Take the time, charge, reply."""
        self._generating += 1
        try:
            if job.fault is not None and not misbehave.is_charged(job.fault):
                return await self._spoiled(request, job.fault, b"", None)
            async with self._slots:
                await self._take_time()
            if self._settings.strict_in_flight and self.credits_ended():
                return await self._refuse(request, errors.NO_CREDITS)
            return await self._charge_and_reply(request, job)
        finally:
            self._generating -= 1

    async def _charge_and_reply(self, request: web.Request, job: _Job) -> Sent:
        choices = replies.answers(job.ask, job.fault)
        used = replies.usage(job.ask, choices, self._settings.cached_share)
        body = replies.payload(job.ask, choices, used, self._request_id(), job.fault)
        charge = self._charge(job, used)
        if job.fault is not None:
            return await self._spoiled(request, job.fault, body, charge)
        response = web.Response(body=body, content_type=misbehave.JSON, headers=self._headers(job.ask.model.id))
        sent = await misbehave.send(request, response)
        if sent.whole:
            self.account.delivered(charge)
        return sent

    async def _spoiled(self, request: web.Request, fault: Fault, body: bytes, charge: Charge | None) -> Sent:
        headers = self._headers("" if charge is None else charge.model)
        sent = await misbehave.reply(request, fault, body, headers)
        if charge is not None and sent.whole and misbehave.is_readable(fault.kind):
            self.account.delivered(charge)
        return sent

    async def _take_time(self) -> None:
        median = self._settings.latency
        if median:
            await asyncio.sleep(median * math.exp(self._settings.sigma * self._dice.gauss(0.0, 1.0)))
        if not self.gate.is_set():
            await self.gate.wait()

    def _charge(self, job: _Job, used: dict[str, int]) -> Charge:
        ask = job.ask
        charge = Charge(
            number=self.account.answers + 1,
            time=time.time(),
            path=ask.endpoint.value,
            model=ask.model.id,
            content=sha256(ask.content.encode()).hexdigest(),
            body=sha256(job.body).hexdigest(),
            prompt_tokens=used["prompt_tokens"],
            completion_tokens=used["completion_tokens"],
            nano=ask.model.cost(used["prompt_tokens"], used["cached_tokens"], used["completion_tokens"]),
        )
        self.account.charge(charge)
        self._limits_of(ask.model.id).use(used["total_tokens"], time.monotonic())
        return charge

    def _moment(self, ask: Ask | None = None) -> Moment:
        requests, began = self._script_began
        content, model = ("", "") if ask is None else (ask.text, ask.model.id)
        seconds = time.monotonic() - began
        return Moment(self.account.requests - requests, self.account.answers, seconds, content, model)

    def _limits_of(self, model: str) -> Limits:
        limits = self._limits.get(model)
        if limits is None:
            limits = self._limits[model] = Limits(self._settings, time.monotonic())
        return limits

    def _turned(self, turned: Turned, model: str) -> Refusal:
        headers = dict(self._headers(model))
        if self._settings.headers is not Headers.NONE:
            headers["x-ratelimit-reset"] = f"{turned.reset:.3f}"
        if self._settings.retry_after is not None:
            headers["Retry-After"] = f"{self._settings.retry_after:g}"
        return errors.with_headers(errors.throttled(model, by_tokens=turned.by_tokens), headers)

    def _headers(self, model: str) -> dict[str, str]:
        """The headers of any reply, as the settings want them; without a model, those of an idle one."""
        if self._settings.headers is not Headers.ALL:
            return _NO_HEADERS
        return self._limits_of(model).headers(time.monotonic())

    def _request_id(self) -> str:
        return f"sim-{self.account.requests:06x}-{self.account.answers:06x}"
