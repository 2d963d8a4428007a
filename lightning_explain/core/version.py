"""The version of the package; the build system reads it from this file."""

__version__ = "0.1.0"
