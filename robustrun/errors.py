"""The few exceptions a user can meet, each with the exit code of the command line.

Jobs raise; only `robustrun.cli` catches, prints one sentence and exits.
"""


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
