"""The version of the tool: the tag's, which building and installing write into a file."""

try:
    from tritter_mem._version import __version__
except ImportError:  # a checkout that nothing installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
