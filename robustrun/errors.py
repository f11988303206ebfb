"""The few exceptions a user can meet, each with the exit code of the command line.

Jobs raise; only the command line catches, prints one sentence (`report_error`) and exits.
"""

import errno
import os
import sys
import traceback


class RobustrunError(Exception):
    """Base class: the message is one clear sentence that says what to do."""

    exit_code = 1


class JobFailed(RobustrunError):
    """The job itself failed: training diverged, a solver gave up, the disk is full."""

    exit_code = 1


class Diverged(JobFailed):
    """The loss or a parameter became NaN or infinite; the last good checkpoint is kept."""


class ConfigError(RobustrunError):
    """The request was wrong: an unknown name, key, verb, type, bound, or an impossible combination."""

    exit_code = 2


class DataError(RobustrunError):
    """Data or weights could not be obtained or are not what they should be."""

    exit_code = 3


class Stopped(RobustrunError):
    """A signal asked the job to stop; a checkpoint is saved and the same command resumes."""

    exit_code = 75


def report_error(error: BaseException, prefix: str = "robustrun: ") -> int:
    """Print one sentence for an exception; the exit code that it means."""
    if isinstance(error, KeyboardInterrupt):
        print(f"{prefix}interrupted", file=sys.stderr)
        return 130
    if os.environ.get("ROBUSTRUN_TRACEBACK") == "1":
        traceback.print_exception(error)
    if isinstance(error, OSError) and not isinstance(error, RobustrunError):
        error = JobFailed(_os_sentence(error))
    elif not isinstance(error, RobustrunError):
        text = " ".join(str(error).split())
        hint = "ROBUSTRUN_TRACEBACK=1 shows where"
        error = JobFailed(f"{type(error).__name__}: {text} ({hint})")
    print(f"{prefix}{error}", file=sys.stderr)
    return error.exit_code


def _os_sentence(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full{where}: free some space and type the same command again to resume"
    return f"{error.strerror or error}{where}"
