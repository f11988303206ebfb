"""The mathematics alone: no config, no file, no network, no global state."""
