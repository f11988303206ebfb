"""Loopback servers that speak the providers' formats strictly, with faults on demand."""

import base64
import hashlib
import hmac
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import numpy as np

from robustrun.query.images import decode

KEYS = {
    "AZURE_COMPUTER_VISION_SUBSCRIPTION_KEY": "azure-secret-1",
    "GOOGLE_VISION_API_KEY": "google-secret-2",
    "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "aws-secret-3",
    "CLARIFAI_API_KEY": "clarifai-secret-4",
}
SECRETS = [value for name, value in KEYS.items() if name != "AWS_ACCESS_KEY_ID"]


def label_image(pixels):
    """Ranked (name, score): the darkest, middle or brightest third of mean brightness, any fixed function will do."""
    mean = float(np.asarray(pixels, float).mean()) / 255
    scores = {"dark": 1 - mean, "bright": mean, "grey": 1 - abs(2 * mean - 1)}
    return sorted(scores.items(), key=lambda item: -item[1])


class FakeService:
    """One server for all four vision APIs.

    Args:
        faults: for the n-th request (from 0), one of the names below; it is used up.
        smallest: sides below are refused as the provider does.
    """

    def __init__(self, faults=None, smallest=1):
        self.faults, self.smallest = dict(faults or {}), smallest
        self.requests, self.bodies, self.pixels, self.answered = 0, [], [], 0
        self.always = None
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"service": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()

    def take_fault(self, body):
        with self._lock:
            number, self.requests = self.requests, self.requests + 1
            self.bodies.append(body)
            return self.always or self.faults.pop(number, None)


def signature_of(headers, body, secret):
    """Signature version 4, computed from the received request by the letter of its definition."""
    given = headers["Authorization"]
    fields = dict(part.strip().split("=", 1) for part in given.split(" ", 1)[1].split(","))
    names = fields["SignedHeaders"].split(";")
    assert {"host", "x-amz-date", "x-amz-target", "content-type"} <= set(names)
    canonical = "POST\n/\n\n" + "".join(f"{n}:{headers[n].strip()}\n" for n in names)
    canonical += f"\n{';'.join(names)}\n{hashlib.sha256(body).hexdigest()}"
    _, day, region, service, end = fields["Credential"].split("/")
    text = f"AWS4-HMAC-SHA256\n{headers['X-Amz-Date']}\n{day}/{region}/{service}/{end}\n"
    text += hashlib.sha256(canonical.encode()).hexdigest()
    key = ("AWS4" + secret).encode()
    for part in (day, region, service, end):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return fields["Signature"], hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        service = self.service
        fault = service.take_fault(body)
        address = urlsplit(self.path)
        if self.headers.get("X-Amz-Target"):
            self.aws(body, fault)
        elif address.path == "/v1/images:annotate":
            self.google(address, body, fault)
        elif address.path.startswith("/v2/users/clarifai/"):
            self.clarifai(body, fault)
        elif address.path.startswith(("/vision/", "/computervision/")):
            self.azure(address, body, fault)
        else:
            self.send(404, {"error": {"code": "NotFound"}})

    # ------------------------------------------------------------------------------------- faults

    def generic(self, fault, throttled):
        """True if the fault has been played."""
        match fault:
            case None:
                return False
            case "429":
                self.send(429, throttled, {"Retry-After": "0"})
            case "500":
                self.send(500, {"error": {"code": "InternalError"}})
            case "reset":
                self.close_connection = True
                self.connection.close()
            case "slow":
                import time

                time.sleep(1.5)
                self.close_connection = True
            case "truncated":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b'{"tags": [')
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()
            case "malformed":
                self.raw(200, b"<html>busy</html>", "text/html")
            case "unauthorised":
                self.send(401, {"error": {"code": "401", "message": "Access denied"}})
            case "bad request":
                self.send(400, {"error": {"code": "InvalidRequest"}})
            case _:
                return False
        return True

    def send(self, status, content, headers=None):
        self.raw(status, json.dumps(content).encode(), "application/json", headers)

    def raw(self, status, body, kind, headers=None):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def labels(self, image):
        pixels = decode(image, 3)
        with self.service._lock:
            self.service.pixels.append(pixels)
            self.service.answered += 1
        return None if min(pixels.shape[:2]) < self.service.smallest else label_image(pixels)

    # ------------------------------------------------------------------------------------ formats

    def azure(self, address, body, fault):
        assert self.headers["Content-Type"] == "application/octet-stream"
        if self.headers.get("Ocp-Apim-Subscription-Key") != KEYS["AZURE_COMPUTER_VISION_SUBSCRIPTION_KEY"]:
            return self.send(401, {"error": {"code": "401", "message": "Access denied"}})
        if self.generic(fault, {"error": {"code": "429", "message": "Rate limit"}}):
            return None
        found = [] if fault == "empty" else self.labels(body)
        if found is None:
            inner = {"code": "InvalidImageSize", "message": "too small"}
            return self.send(400, {"error": {"code": "InvalidRequest", "innererror": inner}})
        tags = [{"name": name, "confidence": score} for name, score in found]
        query = parse_qs(address.query)
        if address.path == "/vision/v3.2/analyze":
            assert query["visualFeatures"] == ["Tags"]
            return self.send(200, {"tags": tags, "requestId": "r", "modelVersion": "2021-05-01"})
        assert query == {"api-version": ["2023-10-01"], "features": ["tags"]}
        self.send(200, {"modelVersion": "2023-10-01", "tagsResult": {"values": tags}})

    def google(self, address, body, fault):
        key = self.headers.get("X-Goog-Api-Key") or parse_qs(address.query).get("key", [""])[0]
        if key != KEYS["GOOGLE_VISION_API_KEY"]:
            return self.send(403, {"error": {"code": 403, "status": "PERMISSION_DENIED"}})
        if self.generic(fault, {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED"}}):
            return None
        requests = json.loads(body)["requests"]
        assert len(requests) <= 16
        responses = []
        for number, request in enumerate(requests):
            assert request["features"] == [{"type": "LABEL_DETECTION", "maxResults": 10}]
            if fault == "error in 200" and number == len(requests) - 1:
                responses.append({"error": {"code": 14, "message": "unavailable"}})
            elif fault == "empty":
                responses.append({})
            else:
                found = self.labels(base64.b64decode(request["image"]["content"], validate=True))
                items = [{"mid": "/m", "description": name, "score": s, "topicality": s} for name, s in found]
                responses.append({"labelAnnotations": items})
        self.send(200, {"responses": responses[:-1] if fault == "short" else responses})

    def aws(self, body, fault):
        assert self.headers["X-Amz-Target"] == "RekognitionService.DetectLabels"
        assert self.headers["Content-Type"] == "application/x-amz-json-1.1"
        given, expected = signature_of(self.headers, body, KEYS["AWS_SECRET_ACCESS_KEY"])
        if given != expected:
            return self.send(400, {"__type": "InvalidSignatureException", "message": "signature"})
        if fault == "throttled in 400":
            return self.send(400, {"__type": "ThrottlingException", "message": "slow down"})
        if self.generic(fault, {"__type": "ThrottlingException"}):
            return None
        found = [] if fault == "empty" else self.labels(base64.b64decode(json.loads(body)["Image"]["Bytes"]))
        labels = [{"Name": name, "Confidence": 100 * s, "Parents": []} for name, s in found]
        self.send(200, {"Labels": labels, "LabelModelVersion": "3.0"})

    def clarifai(self, body, fault):
        if self.headers.get("Authorization") != f"Key {KEYS['CLARIFAI_API_KEY']}":
            return self.send(401, {"status": {"code": 11009, "description": "Invalid API key"}})
        if self.generic(fault, {"status": {"code": 11005, "description": "throttled"}}):
            return None
        inputs = json.loads(body)["inputs"]
        assert len(inputs) <= 128
        outputs, mixed = [], False
        for number, item in enumerate(inputs):
            if fault == "mixed" and number == 0:
                mixed = True
                outputs.append({"id": "x", "status": {"code": 10030}, "data": {}})
                continue
            content = base64.b64decode(item["data"]["image"]["base64"], validate=True)
            found = [] if fault == "empty" else self.labels(content)
            concepts = [{"id": n, "name": n, "value": s, "app_id": "main"} for n, s in found]
            outputs.append({"id": "x", "status": {"code": 10000}, "data": {"concepts": concepts} if concepts else {}})
        self.send(200, {"status": {"code": 10010 if mixed else 10000}, "outputs": outputs})
