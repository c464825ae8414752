"""The comparison of a stream on the server with its specification."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from streams.jetstream.changes import TopologyChange
from streams.jetstream.specs import StreamSpec, covers

# From this version on the server takes "no limit" of a stream for this many consumers.
_LIMITED_SINCE: Final = (2, 15)
DEFAULT_CONSUMERS: Final = 1000


def compare_stream(
    spec: StreamSpec, found: Mapping[str, Any] | None, missing: int = 0
) -> list[TopologyChange]:
    """The changes and warnings for a stream; `found` is the answer of STREAM.INFO, None if it does not exist.

    `missing` is how many consumers are still to be made on it.
    """
    if found is None:
        request = (f"STREAM.CREATE.{spec.name}", spec.config())
        text = (
            f"create with {', '.join(spec.subjects)}; replicas {spec.replicas}, "
            f"max_consumers {spec.max_consumers}"
        )
        return [TopologyChange("stream", spec.name, "create", text, request)]
    config = found["config"]
    changes = []
    lacking = _lacking(spec, config)
    if lacking and not _subjects_are_fixed(config):
        request = (
            f"STREAM.UPDATE.{spec.name}",
            {**config, "subjects": _joined(config.get("subjects") or [], lacking)},
        )
        text = f"add subjects {', '.join(lacking)}"
        changes.append(TopologyChange("stream", spec.name, "add_subjects", text, request))
    return changes + [
        TopologyChange("stream", spec.name, "warning", text)
        for text in _warnings(spec, found, lacking, missing)
    ]


def describe(name: str, found: Mapping[str, Any] | None) -> str:
    """One line about a stream on the server: durability and limits."""
    if found is None:
        return f"stream {name} is not there"
    config = found["config"]
    limit = config.get("max_consumers", -1)
    max_consumers = (
        f"{limit}" if limit > 0 else f"{limit} ({consumer_limit(found) or 'no limit'} on this server)"
    )
    parts = [
        f"replicas {config.get('num_replicas', 1)}",
        f"storage {config.get('storage')}",
        f"retention {config.get('retention')}",
        f"max_consumers {max_consumers}",
        f"consumers {found['state']['consumer_count']}",
        f"persist_mode {config.get('persist_mode') or 'default'}",
    ]
    if upstream := _upstream(config):
        parts.append(upstream)
    if config.get("sealed"):
        parts.append("sealed")
    return f"stream {name} has {', '.join(parts)}"


def consumer_limit(found: Mapping[str, Any]) -> int | None:
    """The most consumers that the server allows on this stream; None without a limit."""
    limit = int(found["config"].get("max_consumers", -1))
    if limit > 0:
        return limit
    version = str((found["config"].get("metadata") or {}).get("_nats.ver", "0.0")).split(".")
    numbers = tuple(int(part) for part in version[:2] if part.isdigit())
    return DEFAULT_CONSUMERS if numbers >= _LIMITED_SINCE else None


def _lacking(spec: StreamSpec, config: Mapping[str, Any]) -> list[str]:
    have: list[str] = config.get("subjects") or []
    return [subject for subject in spec.subjects if not any(covers(known, subject) for known in have)]


def _joined(have: Sequence[str], added: Sequence[str]) -> list[str]:
    # The server takes no two overlapping subjects: narrower ones are part of the new ones.
    return [known for known in have if not any(covers(new, known) for new in added)] + list(added)


def _upstream(config: Mapping[str, Any]) -> str:
    """The mirror or sources that fill the stream; empty without."""
    if mirror := config.get("mirror"):
        return f"mirror of {mirror['name']}"
    if sources := config.get("sources"):
        return f"sources {', '.join(source['name'] for source in sources)}"
    return ""


def _subjects_are_fixed(config: Mapping[str, Any]) -> bool:
    return bool(_upstream(config) or config.get("sealed"))


def _warnings(
    spec: StreamSpec, found: Mapping[str, Any], lacking: Sequence[str], missing: int
) -> Iterator[str]:
    config = found["config"]
    yield from _limited_use(config, lacking)
    yield from _retention(config)
    yield from _differences(spec.config(), config)
    yield from _replicas(spec, config)
    yield from durability_warnings(config)
    limit = consumer_limit(found)
    count = found["state"]["consumer_count"]
    if missing and limit is not None and limit - count < missing:
        yield (
            f"has {count} of at most {limit} consumers, and {missing} more are needed: "
            f"nats stream edit {spec.name} --max-consumers {max(spec.max_consumers, count + missing)}"
        )


def _limited_use(config: Mapping[str, Any], lacking: Sequence[str]) -> Iterator[str]:
    if upstream := _upstream(config):
        without = f", without {', '.join(lacking)} among its own subjects" if lacking else ""
        yield f"is fed by others ({upstream}): used as it is{without}; nothing is added"
    if config.get("sealed"):
        yield "is sealed: used as it is, but it takes no new message"
    transforms = [
        config.get("subject_transform"),
        *((config.get("mirror") or {}).get("subject_transforms") or []),
    ]
    for source in config.get("sources") or []:
        transforms += source.get("subject_transforms") or []
    for transform in filter(None, transforms):
        yield (
            f"stores {transform.get('src') or '>'} as {transform.get('dest')}: left as it is; what it holds under "
            "other subjects than ours is not fetched"
        )


def _retention(config: Mapping[str, Any]) -> Iterator[str]:
    if config.get("retention") == "interest":
        yield (
            "retention is interest, not limits: left as it is. What is published while no consumer asks for "
            "it is lost; keep a consumer on it, or change the retention to limits in place"
        )
    elif config.get("retention") != "limits":
        yield f"retention is {config.get('retention')}, not limits: left as it is"


def _differences(ours: Mapping[str, object], theirs: Mapping[str, Any]) -> Iterable[str]:
    for name in ("max_age", "discard", "max_msgs", "max_bytes", "max_msg_size"):
        if theirs.get(name, ours[name]) != ours[name]:
            yield f"{name} is {theirs[name]}, ours would be {ours[name]}: left as it is"


def _replicas(spec: StreamSpec, config: Mapping[str, Any]) -> Iterator[str]:
    replicas = config.get("num_replicas", 1)
    if replicas < spec.replicas:
        down = "one node down stops publishing" if replicas == 1 else "fewer nodes may be down"
        yield (
            f"has {replicas} of {spec.replicas} replicas: left as it is, {down}; "
            f"nats stream edit {spec.name} --replicas {spec.replicas}"
        )


def durability_warnings(config: Mapping[str, Any]) -> Iterator[str]:
    """Settings of a stream by which it loses confirmed messages, with what to do.

    The server's `sync_interval` matters, too, but no client can read it. Servers before 2.12 have no `persist_mode`.
    """
    if config.get("storage") == "memory":
        yield (
            "storage is memory: a restart of the server loses what it has confirmed. "
            "Make the stream anew with storage file"
        )
    if config.get("persist_mode") == "async":
        yield (
            "persist_mode is async: events are confirmed before they are written, and a crash loses them. It cannot "
            "be changed: make the stream anew without it"
        )
