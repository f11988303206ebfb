"""Signature version 4 of AWS, for a POST to "/" without a query string."""

import hashlib
import hmac
from collections.abc import Mapping
from datetime import UTC, datetime


def signing_key(secret: str, day: str, region: str, service: str) -> bytes:
    """The key of a day, region and service: a chain of HMACs."""
    key = f"AWS4{secret}".encode()
    for part in (day, region, service, "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return key


def sign(
    headers: Mapping[str, str],
    body: bytes,
    key_id: str,
    secret: str,
    region: str,
    service: str,
    now: datetime | None = None,
) -> dict[str, str]:
    """The headers (names in lower case, host among them) with x-amz-date and authorization."""
    moment = (now or datetime.now(UTC)).strftime("%Y%m%dT%H%M%SZ")
    signed = {**headers, "x-amz-date": moment}
    scope = f"{moment[:8]}/{region}/{service}/aws4_request"
    names = ";".join(sorted(signed))
    lines = "".join(f"{name}:{' '.join(signed[name].split())}\n" for name in sorted(signed))
    canonical = f"POST\n/\n\n{lines}\n{names}\n{hashlib.sha256(body).hexdigest()}"
    to_sign = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = signing_key(secret, moment[:8], region, service)
    signature = hmac.new(key, to_sign.encode(), hashlib.sha256).hexdigest()
    signed["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={key_id}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    return signed
