"""What is raised where no bound is known."""

from robustrun.errors import ConfigError


class Unsupported(ConfigError, TypeError):
    """No bound of this kind is known for this layer, operation, activation or region; the message names it."""
