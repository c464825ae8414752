"""Every event in the streams against the rows, the dead letters and the exhausted events of its company."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Final

import asyncpg
import nats
from nats.js import JetStreamContext

from events.subjects import HISTORICAL, REALTIME, Tenant
from testkit.accounting import Accounting, Report
from testkit.evidence import gather, incarnation, stored_version
from testkit.items import HISTORY, good
from testkit.oracle import Published
from testkit.traffic import Publication
from tests import strict

_STREAMS: Final = {"wa_events_stream": REALTIME, "wa_history_events_stream": HISTORICAL}
_SILENCE: Final = 3.0


async def account(nats_url: str, dsn: str, company: str) -> tuple[Report, int]:
    """The account of one company, none of whose events may be given up, and how many the streams hold."""
    client = await nats.connect(nats_url)
    database = await asyncpg.connect(dsn)
    try:
        js = client.jetstream()
        evidence = await gather(js, database, company)
        events = [event async for event in _published(js, Tenant(company))]
        report = Report()
        in_order = sorted(events, key=lambda event: (event.version.ns, event.version.sequence))
        Accounting(company, in_order, evidence).add_to(report)
        report.problems += strict.problems(company, in_order, evidence)
        return report, len(events)
    finally:
        await database.close()
        await client.close()


async def _published(js: JetStreamContext, tenant: Tenant) -> AsyncIterator[Published]:
    for stream, bases in _STREAMS.items():
        made = await incarnation(js, stream)
        for base in bases:
            subject = tenant.subject(base)
            messages = await js.subscribe(subject, stream=stream, ordered_consumer=True)
            try:
                while True:
                    message = await messages.next_msg(timeout=_SILENCE)
                    version = replace(stored_version(message.reply), incarnation=made)
                    yield Published(_publication(subject, base, message.data), version)
                    if not message.metadata.num_pending:
                        break
            except nats.errors.TimeoutError:
                pass
            finally:
                await messages.unsubscribe()


def _publication(subject: str, event_type: str, data: bytes) -> Publication:
    body = json.loads(data)
    payloads = body[HISTORY[event_type][0]] if event_type in HISTORY else [body]
    items = tuple(good(event_type, payload) for payload in payloads)
    return Publication(0, subject, data, {}, event_type, items)
