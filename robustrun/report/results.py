"""`result.json`: what a finished job says, written last and atomically, present if and only if the job completed."""

import json
import math
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from robustrun.errors import DataError

SCHEMA = 1


class Result(BaseModel):
    """The figures of one job with everything needed to judge them."""

    model_config = ConfigDict(extra="forbid")

    schema_: int = Field(SCHEMA, alias="schema")
    exp: str
    paper: str | None = None
    row: str | None = None
    shard: str | None = None  # "i/n": the figures are of this part of the examples alone
    metrics: dict[str, float | None]
    paper_metrics: dict[str, float | None] = {}
    timings: dict[str, float] = {}  # seconds: data, build, fit, certify, total
    counts: dict[str, int] = {}  # parameters, examples, forward/backward passes
    env: dict[str, Any] = {}  # versions, device, git commit, dirty flag
    seed: int = 0
    config_sha256: str
    overrides: list[str] = []
    finished_at: str = ""  # UTC, ISO 8601

    def write(self, path: Path) -> None:
        """Write the file atomically. NaN and infinity become null: JSON has no word for them."""
        from robustrun.runtime.files import write_atomically  # with torch, which reading results does without

        data = self.model_dump(by_alias=True, mode="json")
        for name in ("metrics", "paper_metrics"):
            data[name] = {k: v if v is None or math.isfinite(v) else None for k, v in data[name].items()}
        write_atomically(path, json.dumps(data, indent=2, allow_nan=False).encode() + b"\n")

    @classmethod
    def read(cls, path: Path) -> "Result":
        """Read and check a result file.

        Raises:
            DataError: it is missing, truncated, or written under another schema.
        """
        try:
            data = json.loads(path.read_text())
        except FileNotFoundError:
            raise DataError(f"{path}: there is no finished run here") from None
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is not readable ({error}); delete it and run the job again") from None
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            found = data.get("schema") if isinstance(data, dict) else type(data).__name__
            raise DataError(f"{path} has schema {found}, this version reads schema {SCHEMA}; run the job again")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise DataError(f"{path} is not a result file: {where}: {first['msg']}") from None
