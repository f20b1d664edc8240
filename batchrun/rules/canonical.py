"""What makes two requests the same: the canonical body and its digest."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import msgspec

from batchrun.records import Endpoint

DIGEST_BYTES = 16

# BLAKE2b keys a digest to its purpose by `person` (RFC 7693, section 2.8), so a bad line can never equal a request.
_BAD_ROW = b"batchrun bad row"

_encode = msgspec.json.Encoder(order="sorted").encode


def canonical(body: dict[str, Any]) -> bytes:
    """The body as JSON with sorted keys and no spaces; an absent key is not a null one.

    Raises:
        UnicodeEncodeError: a string holds a lone surrogate, which JSON in UTF-8 cannot carry.
    """
    return _encode(body)


def written(body: dict[str, Any]) -> bytes:
    """The body as JSON in its own order, without spaces.

    Identity does not depend on the order of names, but answers may: a model that is held to a schema writes its
    properties in the schema's order, and an answer that comes before its reasoning is another answer.

    Raises:
        UnicodeEncodeError: a string holds a lone surrogate.
    """
    return msgspec.json.encode(body)


def digest(endpoint: Endpoint, body: bytes) -> bytes:
    """16 bytes of BLAKE2b over the endpoint's kind and the canonical body."""
    return blake2b(endpoint.value.encode() + b"\0" + body, digest_size=DIGEST_BYTES).digest()


def bad_digest(raw: bytes) -> bytes:
    """The digest of an input row that is no request: of its raw bytes, in a space of its own."""
    return blake2b(raw, digest_size=DIGEST_BYTES, person=_BAD_ROW).digest()
